/*
 * C interface of the CUDA attention kernels: one call of ortflash::FlashAttention (version 1) with every size, stride
 * and option resolved to numbers. Mirrors AttentionProblem in graph-rewrite/op/problem.ts; the formula stands in
 * graph-rewrite/op/definition.ts. All pointers are device pointers; strides count elements.
 */
#ifndef ORTFLASH_ATTENTION_H_
#define ORTFLASH_ATTENTION_H_

#include <stddef.h>
#include <stdint.h>

#define ORTFLASH_EXPORT __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

enum OrtFlashElement { ORTFLASH_FLOAT32 = 0, ORTFLASH_FLOAT16 = 1, ORTFLASH_BFLOAT16 = 2 };

enum OrtFlashMaskKind { ORTFLASH_MASK_NONE = 0, ORTFLASH_MASK_BOOLEAN = 1, ORTFLASH_MASK_ADDITIVE = 2 };

/* Which kernel serves the call. AUTOMATIC for every user; the others are for tests and benchmarks. */
enum OrtFlashKernel {
  ORTFLASH_AUTOMATIC = 0,
  ORTFLASH_SCALAR = 1,    /* one warp a query row; any head dimension */
  ORTFLASH_FLOAT32_TILED = 2,
  ORTFLASH_AMPERE = 3,    /* mma.sync and cp.async, FlashAttention-2 */
  ORTFLASH_HOPPER = 4,    /* wgmma and TMA, FlashAttention-3 */
  ORTFLASH_DECODE = 5,    /* few queries, split over the keys; any element type */
  ORTFLASH_TF32 = 6       /* float32 with operands rounded to tf32 */
};

/* Element (b, h, s, d) is data[b·batch + h·head + s·sequence + d·dimension]. */
typedef struct OrtFlashTensor {
  void *data;
  int64_t batch, head, sequence, dimension;
} OrtFlashTensor;

/* Element (b, h, i, j) is data[(b mod batches)·batch + h·head + i·query + j·key]; keys from `keys` on are masked. */
typedef struct OrtFlashMask {
  const void *data;
  int32_t kind;
  int32_t batches;
  int64_t keys;
  int64_t batch, head, query, key;
} OrtFlashMask;

typedef struct OrtFlashAttention {
  int32_t element;                  /* OrtFlashElement of Q, K, V, Y, past, present, sink and an additive mask */
  int32_t kernel;                   /* OrtFlashKernel */
  int32_t batch, query_heads, key_heads;
  int32_t queries, new_keys, past_keys;
  int32_t head_dimension, value_dimension;
  OrtFlashTensor query, key, value, output;
  /* (B, key heads, past keys, D or Dv), contiguous; null without a past. */
  const void *past_key, *past_value;
  /* (B, key heads, past + new keys, D or Dv), contiguous; where null beside a past, workspace is used instead. */
  void *present_key, *present_value;
  OrtFlashMask mask;
  const int64_t *key_lengths;       /* (B), nonpad_kv_seqlen, or null */
  const void *sink;                 /* (query heads), or null */
  float *log_sum_exp;               /* out, (B, query heads, queries), natural logarithm; or null */
  float scale, softcap;
  int32_t is_causal, left_window, right_window, align_end;
  float masked_value;
  int32_t allow_tf32;               /* float32: both products may take operands of 10 bits behind the point */
} OrtFlashAttention;

/*
 * Bytes of workspace that ortflash_attention_run needs for this call on the current device (256-byte aligned memory;
 * it need not be initialised). Returns null, or what is wrong with the call (a string that lives forever).
 */
ORTFLASH_EXPORT const char *ortflash_attention_workspace(const OrtFlashAttention *call, size_t *bytes);

/*
 * Enqueues the call on `stream` (a cudaStream_t) and returns without waiting. Allocates nothing and keeps nothing:
 * safe from several threads and under stream capture. Returns null, or what went wrong.
 */
ORTFLASH_EXPORT const char *ortflash_attention_run(const OrtFlashAttention *call, void *workspace, void *stream);

/* Null, or why the current device cannot run the kernels. */
ORTFLASH_EXPORT const char *ortflash_device_check(void);

/* Name of the kernel that the call would take, for reports. */
ORTFLASH_EXPORT const char *ortflash_attention_kernel_name(const OrtFlashAttention *call);

#ifdef __cplusplus
}
#endif
#endif
