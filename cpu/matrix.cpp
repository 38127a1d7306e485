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
#pragma GCC unroll 4
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < columns; ++j) sum[i][j] = first ? Vector<T>{} : c[i * size + j];
  for (int k = 0; k < size; ++k) {
    Vector<T> right[columns];
#pragma GCC unroll 4
    for (int j = 0; j < columns; ++j) right[j] = b[k * vb.row + j * vb.column];
#pragma GCC unroll 4
    for (int i = 0; i < rows; ++i) {
      const Vector<T> left = a[i * va.row + k * va.column];
#pragma GCC unroll 4
      for (int j = 0; j < columns; ++j) sum[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < columns; ++j) c[i * size + j] = sum[i][j];
}

// Blocks of the product that leave room for both operands: 32 registers with AVX-512, 16 otherwise.
inline constexpr int largest_block = sizeof(Vector<float>) == 64 ? 4 : 3;

// c = a b, or c += a b; size x size matrices of vectors, c by rows. Blocks of nearly equal sides.
template <class T>
inline void multiply_matrices(const Vector<T>* a, MatrixView va, const Vector<T>* b, MatrixView vb, Vector<T>* c, int size,
                              bool first) {
  const int blocks = (size + largest_block - 1) / largest_block;
  const auto begin = [&](int block) { return block * size / blocks; };
  for (int bi = 0; bi < blocks; ++bi)
    for (int bj = 0; bj < blocks; ++bj) {
      const int i = begin(bi), j = begin(bj), rows = begin(bi + 1) - i, columns = begin(bj + 1) - j;
      const Vector<T>*left = a + i * va.row, *right = b + j * vb.column;
      Vector<T>* out = c + i * size + j;
#define EQUITENSOR_CASE(r, c) \
  case 8 * r + c: multiply_block<r, c, T>(left, va, right, vb, out, size, first); break;
      switch (8 * rows + columns) {
        EQUITENSOR_CASE(4, 4) EQUITENSOR_CASE(4, 3) EQUITENSOR_CASE(3, 4) EQUITENSOR_CASE(3, 3) EQUITENSOR_CASE(3, 2)
        EQUITENSOR_CASE(2, 3) EQUITENSOR_CASE(2, 2) EQUITENSOR_CASE(2, 1) EQUITENSOR_CASE(1, 2) EQUITENSOR_CASE(1, 1)
      }
#undef EQUITENSOR_CASE
    }
}

template <class T>
struct MatrixBuffers {
  Vector<T>*tile[3], *out[3], *in_channel[3], *out_channel[3], *matrix[3], *gradient[3], *products;
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
    // X and Y are not needed any more when the output is read off: their places save 6 % at L = 5, where all of it nearly fills L1.
    if (plan.mul == 1 && plan.slots[2].dim >= plan.slots[0].parts * plan.size * plan.size) matrix[0] = out[2] + line<T>;
    products = plan.direct.count <= plan.size * plan.size ? matrix[1] : scratch.take(plan.direct.count);
  }
};

// Between a matrix and its symmetric and antisymmetric halves, see core/matrix.hpp.
template <class T>
inline void fold(Vector<T>* matrix, int size) {
  for (int i = 0; i < size; ++i)
    for (int j = i + 1; j < size; ++j) {
      const Vector<T> upper = matrix[i * size + j], lower = matrix[j * size + i];
      matrix[i * size + j] = upper + lower;
      matrix[j * size + i] = upper - lower;
    }
}
template <class T>
inline void to_matrix(const MatrixPlan<T>& plan, MatrixBuffers<T>& buffer, int s, int u) {
  const MatrixSlot<T>& slot = plan.slots[s];
  apply(slot.to_matrix, gather_channel<T>(slot, buffer.tile[s], u, buffer.in_channel[s]), buffer.matrix[s]);
  for (int part = 0; part < slot.parts; ++part) fold<T>(buffer.matrix[s] + part * plan.size * plan.size, plan.size);
}
template <class T>
inline const Vector<T>* channel_of(const MatrixPlan<T>& plan, const MatrixBuffers<T>& buffer, int s) {
  return plan.slots[s].direct ? buffer.tile[s] : buffer.in_channel[s];
}
template <class T>
inline void from_matrix(const MatrixPlan<T>& plan, MatrixBuffers<T>& buffer, int s, int u, Vector<T>* out) {
  const MatrixSlot<T>& slot = plan.slots[s];
  for (int part = 0; part < slot.parts; ++part) fold<T>(buffer.gradient[s] + part * plan.size * plan.size, plan.size);
  Vector<T>* channel = slot.direct ? out : buffer.out_channel[s];
  apply(slot.from_matrix, buffer.gradient[s], channel);
  if (s == 2 && plan.direct.count > 0) {
    const Vector<T>*x = channel_of(plan, buffer, 0), *y = channel_of(plan, buffer, 1);
    for (int p = 0; p < plan.direct.count; ++p) buffer.products[p] = x[plan.direct.x_component[p]] * y[plan.direct.y_component[p]];
    apply(plan.direct.map, buffer.products, channel);
  }
  scatter_channel<T>(slot, out, u, buffer.out_channel[s]);
}

template <class T>
void matrix_forward(const MatrixPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  Scratch<T> scratch(memory);
  MatrixBuffers<T> buffer(plan, scratch);
  const int n = plan.size, entries = n * n;
  RowWriter<T> z(a.z_out, plan.slots[2].dim, buffer.out[2]);
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
  const int n = plan.size, entries = n * n;
  RowWriter<T> x_out(a.x_out, plan.slots[0].dim, buffer.out[0], a.sum_x);
  RowWriter<T> y_out(a.y_out, plan.slots[1].dim, buffer.out[1], a.sum_y);
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
