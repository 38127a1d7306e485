// Matrix tensor product: the components of each operand become a matrix, the matrices are multiplied, and the product's
// components are read off. The form is tr(X Y Z^T), so that dX = dZ Y^T and dY = X^T dZ.
#include "cpu/block_map.hpp"
#include "cpu/kernels.hpp"
#include "cpu/rows.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

struct MatrixView {
  int row, column;  // strides: a transpose costs nothing
};

template <int rows, int columns, class T>
inline void multiply_block(const Vector<T>* a, MatrixView va, const Vector<T>* b, MatrixView vb, Vector<T>* c, int size,
                           bool first) {
  Vector<T> sum[rows][columns];
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j) sum[i][j] = first ? Vector<T>{} : c[i * size + j];
  for (int k = 0; k < size; ++k)
#pragma GCC unroll 4
    for (int i = 0; i < rows; ++i) {
      const Vector<T> value = a[i * va.row + k * va.column];
#pragma GCC unroll 4
      for (int j = 0; j < columns; ++j) sum[i][j] += value * b[k * vb.row + j * vb.column];
    }
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j) c[i * size + j] = sum[i][j];
}

// c = a b, or c += a b; size x size matrices of vectors, c by rows.
template <class T>
inline void multiply_matrices(const Vector<T>* a, MatrixView va, const Vector<T>* b, MatrixView vb, Vector<T>* c, int size,
                              bool first) {
  for (int i = 0; i < size; i += 3)
    for (int j = 0; j < size; j += 3) {
      const Vector<T>*ai = a + i * va.row, *bj = b + j * vb.column;
      Vector<T>* cij = c + i * size + j;
      switch (minimum(size - i, 3) * 4 + minimum(size - j, 3)) {
        case 15: multiply_block<3, 3, T>(ai, va, bj, vb, cij, size, first); break;
        case 14: multiply_block<3, 2, T>(ai, va, bj, vb, cij, size, first); break;
        case 13: multiply_block<3, 1, T>(ai, va, bj, vb, cij, size, first); break;
        case 11: multiply_block<2, 3, T>(ai, va, bj, vb, cij, size, first); break;
        case 10: multiply_block<2, 2, T>(ai, va, bj, vb, cij, size, first); break;
        case 9: multiply_block<2, 1, T>(ai, va, bj, vb, cij, size, first); break;
        case 7: multiply_block<1, 3, T>(ai, va, bj, vb, cij, size, first); break;
        case 6: multiply_block<1, 2, T>(ai, va, bj, vb, cij, size, first); break;
        case 5: multiply_block<1, 1, T>(ai, va, bj, vb, cij, size, first); break;
      }
    }
}

template <class T>
struct MatrixBuffers {
  Vector<T>*tile[3], *out[3], *in_channel[3], *out_channel[3], *matrix[3], *gradient[3];
  MatrixBuffers(const MatrixPlan<T>& plan, Scratch<T>& scratch) {
    for (int s = 0; s < 3; ++s) {
      const MatrixSlot<T>& slot = plan.slots[s];
      const long entries = long(slot.parts) * plan.size * plan.size;
      tile[s] = scratch.take(slot.dim);
      out[s] = scratch.take(RowWriter<T>::buffer_vectors(slot.dim));
      in_channel[s] = scratch.take(slot.components);
      out_channel[s] = scratch.take(slot.components);
      matrix[s] = scratch.take(entries);
      gradient[s] = scratch.take(entries);
    }
  }
};

template <class T>
inline void to_matrix(const MatrixPlan<T>& plan, MatrixBuffers<T>& buffer, int s, int u) {
  apply(plan.slots[s].to_matrix, gather_channel<T>(plan.slots[s], buffer.tile[s], u, buffer.in_channel[s]), buffer.matrix[s]);
}
template <class T>
inline void from_matrix(const MatrixPlan<T>& plan, MatrixBuffers<T>& buffer, int s, int u, Vector<T>* out) {
  apply(plan.slots[s].from_matrix, buffer.gradient[s], plan.slots[s].direct ? out : buffer.out_channel[s]);
  scatter_channel<T>(plan.slots[s], out, u, buffer.out_channel[s]);
}

template <class T>
void matrix_forward(const MatrixPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  Scratch<T> scratch(memory);
  MatrixBuffers<T> buffer(plan, scratch);
  RowWriter<T> z(a.z_out, plan.slots[2].dim, buffer.out[2]);
  const int n = plan.size, entries = n * n;
  for_each_tile<T>(begin, end, a.stream, [&](const Tile& tile, bool first, bool last) {
    load_rows(a.x, a.x_stride, plan.slots[0].dim, tile, buffer.tile[0]);
    load_rows(a.y, a.y_stride, plan.slots[1].dim, tile, buffer.tile[1]);
    for (int u = 0; u < plan.mul; ++u) {
      to_matrix(plan, buffer, 0, u);
      to_matrix(plan, buffer, 1, u);
      unsigned written = 0;
      for (int p = 0; p < plan.product_count; ++p) {
        const PlanProduct& product = plan.products[p];
        multiply_matrices<T>(buffer.matrix[0] + product.part1 * entries, {n, 1}, buffer.matrix[1] + product.part2 * entries,
                             {n, 1}, buffer.gradient[2] + product.part_out * entries, n, !(written >> product.part_out & 1));
        written |= 1u << product.part_out;
      }
      from_matrix(plan, buffer, 2, u, z.tile());
    }
    z.write(tile, first, last);
  });
  stream_fence();
}

template <class T>
void matrix_backward(const MatrixPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  Scratch<T> scratch(memory);
  MatrixBuffers<T> buffer(plan, scratch);
  RowWriter<T> x_out(a.x_out, plan.slots[0].dim, buffer.out[0], a.sum_x), y_out(a.y_out, plan.slots[1].dim, buffer.out[1], a.sum_y);
  const int n = plan.size, entries = n * n;
  for_each_tile<T>(begin, end, a.stream, [&](const Tile& tile, bool first, bool last) {
    load_rows(a.x, a.x_stride, plan.slots[0].dim, tile, buffer.tile[0]);
    load_rows(a.y, a.y_stride, plan.slots[1].dim, tile, buffer.tile[1]);
    load_rows(a.z, a.z_stride, plan.slots[2].dim, tile, buffer.tile[2]);
    for (int u = 0; u < plan.mul; ++u) {
      for (int s = 0; s < 3; ++s) to_matrix(plan, buffer, s, u);
      unsigned written[2] = {};
      for (int p = 0; p < plan.product_count; ++p) {
        const PlanProduct& product = plan.products[p];
        const Vector<T>* x = buffer.matrix[0] + product.part1 * entries;
        const Vector<T>* y = buffer.matrix[1] + product.part2 * entries;
        const Vector<T>* dz = buffer.matrix[2] + product.part_out * entries;
        multiply_matrices<T>(dz, {n, 1}, y, {1, n}, buffer.gradient[0] + product.part1 * entries, n,
                             !(written[0] >> product.part1 & 1));
        multiply_matrices<T>(x, {1, n}, dz, {n, 1}, buffer.gradient[1] + product.part2 * entries, n,
                             !(written[1] >> product.part2 & 1));
        written[0] |= 1u << product.part1;
        written[1] |= 1u << product.part2;
      }
      from_matrix(plan, buffer, 0, u, x_out.tile());
      from_matrix(plan, buffer, 1, u, y_out.tile());
    }
    x_out.write(tile, first, last);
    y_out.write(tile, first, last);
  });
  x_out.finish();
  y_out.finish();
  stream_fence();
}

template <class T>
long matrix_scratch(const MatrixPlan<T>& plan) {
  Scratch<T> scratch(nullptr);
  MatrixBuffers<T> measured(plan, scratch);
  return scratch.bytes();
}

template <class T>
void add_matrix(TypedKernels<T>& k) {
  k.matrix_forward = matrix_forward<T>;
  k.matrix_backward = matrix_backward<T>;
  k.matrix_scratch = matrix_scratch<T>;
}
template void add_matrix(TypedKernels<float>&);
template void add_matrix(TypedKernels<double>&);

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
