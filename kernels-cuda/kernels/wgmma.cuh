// Hopper's warpgroup matrix multiply (PTX ISA, wgmma): 64×N×16 products of 16-bit operands accumulated in float32 by the
// 128 threads of a warpgroup, in the background. B always lies in shared memory; A there or in registers.
#pragma once
#include <cstdint>

#include "element.cuh"
#include "ptx.cuh"
#include "wgmma_operand.cuh"

namespace ortflash::wgmma {

// Orders this warpgroup's register and shared-memory accesses before the products that follow.
__device__ inline void arrive() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Closes the group of products issued so far.
__device__ inline void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most `kPending` groups are still under way.
template <int kPending>
__device__ inline void wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving accesses to accumulators across this point while products may write them.
template <int kGroups>
__device__ inline void pin(float (&d)[kGroups][4]) {
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
    asm volatile("" : "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])::"memory");
  }
}

// D = A·Bᵀ (+ D where `add`): A 64×16 and B N×16 in shared memory, rows along the 16.
template <typename Element, int kN>
struct RowsByRows;

// D += A·B: A 64×16 in registers, B 16×N in shared memory, rows along N.
template <typename Element, int kN>
struct RegistersByColumns;

// Operand lists of the accumulators: PTX has no arrays, so each N spells its registers.
#define ORTFLASH_REGISTERS_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define ORTFLASH_REGISTERS_40 \
  ORTFLASH_REGISTERS_32 ", " \
  "%32, %33, %34, %35, %36, %37, %38, %39"
#define ORTFLASH_REGISTERS_48 \
  ORTFLASH_REGISTERS_40 ", " \
  "%40, %41, %42, %43, %44, %45, %46, %47"
#define ORTFLASH_REGISTERS_64 \
  ORTFLASH_REGISTERS_48 ", " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define ORTFLASH_REGISTERS_80 \
  ORTFLASH_REGISTERS_64 ", " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define ORTFLASH_REGISTERS_88 \
  ORTFLASH_REGISTERS_80 ", " \
  "%80, %81, %82, %83, %84, %85, %86, %87"
#define ORTFLASH_REGISTERS_96 \
  ORTFLASH_REGISTERS_88 ", " \
  "%88, %89, %90, %91, %92, %93, %94, %95"
#define ORTFLASH_REGISTERS_128 \
  ORTFLASH_REGISTERS_96 ", " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define ORTFLASH_D4(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define ORTFLASH_D16(j) ORTFLASH_D4(j), ORTFLASH_D4(j + 1), ORTFLASH_D4(j + 2), ORTFLASH_D4(j + 3)
#define ORTFLASH_ACCUMULATORS_32 ORTFLASH_D16(0), ORTFLASH_D16(4)
#define ORTFLASH_ACCUMULATORS_40 ORTFLASH_ACCUMULATORS_32, ORTFLASH_D4(8), ORTFLASH_D4(9)
#define ORTFLASH_ACCUMULATORS_48 ORTFLASH_ACCUMULATORS_40, ORTFLASH_D4(10), ORTFLASH_D4(11)
#define ORTFLASH_ACCUMULATORS_64 ORTFLASH_ACCUMULATORS_48, ORTFLASH_D16(12)
#define ORTFLASH_ACCUMULATORS_80 ORTFLASH_ACCUMULATORS_64, ORTFLASH_D16(16)
#define ORTFLASH_ACCUMULATORS_88 ORTFLASH_ACCUMULATORS_80, ORTFLASH_D4(20), ORTFLASH_D4(21)
#define ORTFLASH_ACCUMULATORS_96 ORTFLASH_ACCUMULATORS_88, ORTFLASH_D4(22), ORTFLASH_D4(23)
#define ORTFLASH_ACCUMULATORS_128 ORTFLASH_ACCUMULATORS_96, ORTFLASH_D16(24), ORTFLASH_D16(28)

#define ORTFLASH_ROWS_BY_ROWS(ELEMENT, TYPE, N, REGISTERS, A, B, ADD)                                            \
  template <>                                                                                                  \
  struct RowsByRows<ELEMENT, N> {                                                                              \
    __device__ static void multiply(float (&d)[N / 8][4], uint64_t a, uint64_t b, int add) {                   \
      asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " ADD ", 0;\n"                                        \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE                             \
                   " {" ORTFLASH_REGISTERS_##REGISTERS "}, " A ", " B ", add, 1, 1, 0, 0;\n}"                  \
                   : ORTFLASH_ACCUMULATORS_##REGISTERS                                                         \
                   : "l"(a), "l"(b), "r"(add));                                                                \
    }                                                                                                          \
  };

#define ORTFLASH_REGISTERS_BY_COLUMNS(ELEMENT, TYPE, N, REGISTERS, A, B)                                         \
  template <>                                                                                                  \
  struct RegistersByColumns<ELEMENT, N> {                                                                      \
    __device__ static void multiply(float (&d)[N / 8][4], const uint32_t (&a)[4], uint64_t b) {                \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE                             \
                   " {" ORTFLASH_REGISTERS_##REGISTERS "}, {" A "}, " B ", 1, 1, 1, 1;"                        \
                   : ORTFLASH_ACCUMULATORS_##REGISTERS                                                         \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                      \
    }                                                                                                          \
  };

ORTFLASH_ROWS_BY_ROWS(__half, "f16", 64, 32, "%32", "%33", "%34")
ORTFLASH_ROWS_BY_ROWS(__nv_bfloat16, "bf16", 64, 32, "%32", "%33", "%34")
ORTFLASH_ROWS_BY_ROWS(__half, "f16", 80, 40, "%40", "%41", "%42")
ORTFLASH_ROWS_BY_ROWS(__nv_bfloat16, "bf16", 80, 40, "%40", "%41", "%42")
ORTFLASH_ROWS_BY_ROWS(__half, "f16", 128, 64, "%64", "%65", "%66")
ORTFLASH_ROWS_BY_ROWS(__nv_bfloat16, "bf16", 128, 64, "%64", "%65", "%66")
ORTFLASH_ROWS_BY_ROWS(__half, "f16", 176, 88, "%88", "%89", "%90")
ORTFLASH_ROWS_BY_ROWS(__nv_bfloat16, "bf16", 176, 88, "%88", "%89", "%90")
ORTFLASH_REGISTERS_BY_COLUMNS(__half, "f16", 64, 32, "%32, %33, %34, %35", "%36")
ORTFLASH_REGISTERS_BY_COLUMNS(__nv_bfloat16, "bf16", 64, 32, "%32, %33, %34, %35", "%36")
ORTFLASH_REGISTERS_BY_COLUMNS(__half, "f16", 128, 64, "%64, %65, %66, %67", "%68")
ORTFLASH_REGISTERS_BY_COLUMNS(__nv_bfloat16, "bf16", 128, 64, "%64, %65, %66, %67", "%68")
ORTFLASH_REGISTERS_BY_COLUMNS(__half, "f16", 256, 128, "%128, %129, %130, %131", "%132")
ORTFLASH_REGISTERS_BY_COLUMNS(__nv_bfloat16, "bf16", 256, 128, "%128, %129, %130, %131", "%132")

}  // namespace ortflash::wgmma
