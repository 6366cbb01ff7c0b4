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

// Fills tiles from a matrix whose rows can be read 16 bytes at a time, by kThreads threads. What follows from the thread is
// worked out once: each copies the same piece of every kStep-th row, whose place in the swizzle differs by a constant.
template <typename Element, int kRows, int kColumns, int kThreads>
struct TileCopy {
  using Tile = SharedTile<Element, kRows, kColumns>;
  static constexpr int kStep = kThreads / Tile::kPieces;  // rows between two copies of a thread
  static_assert((kStep % 8 == 0 || 8 % kStep == 0) && kRows % kStep == 0);
  const Element *source;  // the thread's piece of its first row
  int64_t row_stride;
  int row;
  uint32_t offset;  // bytes, into a tile
  bool take;

  __device__ TileCopy(const Element *matrix, int64_t row_stride, int column_limit, int thread)
      : row_stride(row_stride), row(thread / Tile::kPieces) {
    const int index = thread % Tile::kPieces;
    take = index * 8 < column_limit;
    source = matrix + row * row_stride + (take ? index * 8 : 0);
    offset = ((index & ~7) | ((index ^ row) & 7)) * 16 + row * kColumns * 2;
  }

  // Rows first_row.., zeros from row_limit on. The tile begins at a multiple of 128 bytes.
  __device__ void load(const Tile &tile, int first_row, int row_limit) const {
    const Element *from = source + first_row * row_stride;
    const uint32_t to = ptx::shared_address(tile.data) + offset;
    const auto place = [&](int n) { return (to ^ n * kStep % 8 * 16) + n * kStep * kColumns * 2; };
    if (first_row + kRows <= row_limit) {
#pragma unroll
      for (int n = 0; n < kRows / kStep; ++n) {
        ptx::copy_async_16(place(n), from, take);
        from += kStep * row_stride;
      }
    } else {
#pragma unroll
      for (int n = 0; n < kRows / kStep; ++n) {
        const bool inside = first_row + row + n * kStep < row_limit;
        ptx::copy_async_16(place(n), inside ? from : source, take && inside);
        from += kStep * row_stride;
      }
    }
  }
};

}  // namespace ortflash
