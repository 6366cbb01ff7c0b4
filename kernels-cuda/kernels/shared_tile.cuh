// A tile of rows in shared memory, swizzled so that ldmatrix and 16-byte stores meet no bank conflict: 16-byte piece c of
// row r lies at piece c ^ (r mod 8).
#pragma once
#include "element.cuh"
#include "ptx.cuh"

namespace ortflash {

template <typename Element, int kRows, int kColumns>
struct SharedTile {
  static constexpr int kPieces = kColumns / 8;  // 16-byte pieces a row
  static constexpr int kBytes = kRows * kColumns * static_cast<int>(sizeof(Element));
  Element *data;

  __device__ Element *piece(int row, int index) const {
    return data + row * kColumns + ((index & ~7) | ((index ^ row) & 7)) * 8;
  }

  __device__ Element *element(int row, int column) const { return piece(row, column / 8) + column % 8; }

  // Fills the tile from rows first_row.. of a strided matrix; rows from row_limit and columns from column_limit on are
  // zeros. Wide: copies run in the background and join the thread's current group.
  template <int kThreads>
  __device__ void load(const Element *matrix, int64_t row_stride, int64_t column_stride, int first_row, int row_limit,
                       int column_limit, bool wide, int thread) const {
    if (wide) {
#pragma unroll 4
      for (int i = thread; i < kRows * kPieces; i += kThreads) {
        const int row = i / kPieces, index = i % kPieces;
        const bool take = first_row + row < row_limit && index * 8 < column_limit;
        const Element *source = take ? matrix + (first_row + row) * row_stride + index * 8 : matrix;
        ptx::copy_async_16(ptx::shared_address(piece(row, index)), source, take);
      }
      return;
    }
    // Neighbouring threads take neighbouring elements of memory, whichever axis is contiguous.
    const bool along_rows = row_stride == 1 && column_stride != 1;
    for (int i = thread; i < kRows * kColumns; i += kThreads) {
      const int row = along_rows ? i % kRows : i / kColumns;
      const int column = along_rows ? i / kRows : i % kColumns;
      const bool take = first_row + row < row_limit && column < column_limit;
      *element(row, column) = take ? matrix[(first_row + row) * row_stride + column * column_stride]
                                   : ElementOps<Element>::narrow(0.0f);
    }
  }

  // The 16×16 block at (row, column) as A operand of a matrix product.
  __device__ void load_a(uint32_t (&a)[4], int row, int column) const {
    const int lane = threadIdx.x & 31;
    ptx::load_matrix_x4(a, ptx::shared_address(piece(row + lane % 16, column / 8 + lane / 16)));
  }

  // Rows as columns of B (tile = Bᵀ): operands of output columns row..row+7 in b[0], b[1] and row+8..row+15 in b[2], b[3].
  __device__ void load_b_from_rows(uint32_t (&b)[4], int row, int column) const {
    const int lane = threadIdx.x & 31;
    ptx::load_matrix_x4(b, ptx::shared_address(piece(row + lane % 8 + lane / 16 * 8, column / 8 + lane / 8 % 2)));
  }

  // Rows as rows of B: operands of output columns column..column+7 in b[0], b[1] and column+8..column+15 in b[2], b[3].
  __device__ void load_b(uint32_t (&b)[4], int row, int column) const {
    const int lane = threadIdx.x & 31;
    ptx::load_matrix_x4_transposed(b, ptx::shared_address(piece(row + lane % 16, column / 8 + lane / 16)));
  }
};

}  // namespace ortflash
