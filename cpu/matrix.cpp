// Matrix tensor product: the components of each operand become a matrix, the matrices are multiplied, and the product's
// components are read off. The form is tr(X Y Z^T), so that dX = dZ Y^T and dY = X^T dZ.
#include "core/matrix_fold.hpp"
#include "core/series.hpp"
#include "cpu/block_map.hpp"
#include "cpu/kernels.hpp"
#include "cpu/rows.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

struct MatrixView {
  int row, column;  // strides: a transpose costs nothing
};

// Blocks of the product that leave room for both operands: 32 registers with AVX-512, 16 otherwise.
inline constexpr int largest_block = sizeof(Vector<float>) == 64 ? 5 : 3;

// A block of c = a b, or c += a b. `Size` is the matrices' size: an Int up to 13 (k = 6), whose loop over k is unrolled, since its
// mispredicted end cost as much as a third of a block; an int beyond.
template <int rows, int columns, class T, class Size>
EQUITENSOR_NOINLINE void multiply_block(const Vector<T>* a, MatrixView va, const Vector<T>* b, MatrixView vb, Vector<T>* c, Size size,
                                        bool first) {
  Vector<T> sum[rows][columns];
#pragma GCC unroll 5
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 5
    for (int j = 0; j < columns; ++j) sum[i][j] = first ? Vector<T>{} : c[i * size + j];
  each(Int<0>{}, size - Int<1>{}, [&](auto k) EQUITENSOR_LAMBDA {
    Vector<T> right[columns];
#pragma GCC unroll 5
    for (int j = 0; j < columns; ++j) right[j] = in_register(b[k * vb.row + j * vb.column]);
#pragma GCC unroll 5
    for (int i = 0; i < rows; ++i) {
      const Vector<T> left = in_register(a[i * va.row + k * va.column]);
#pragma GCC unroll 5
      for (int j = 0; j < columns; ++j) sum[i][j] += left * right[j];
    }
  });
#pragma GCC unroll 5
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 5
    for (int j = 0; j < columns; ++j) c[i * size + j] = sum[i][j];
}

// All blocks, of nearly equal sides.
template <class T, class Size, class Between>
inline void multiply_blocks(const Vector<T>* a, MatrixView va, const Vector<T>* b, MatrixView vb, Vector<T>* c, Size size, bool first,
                            Between&& between) {
  if constexpr (!std::is_same_v<Size, int>) {
    constexpr int n = Size{}, blocks = (n + largest_block - 1) / largest_block;
    each(Int<0>{}, Int<blocks - 1>{}, [&](auto bi) EQUITENSOR_LAMBDA {
      each(Int<0>{}, Int<blocks - 1>{}, [&](auto bj) EQUITENSOR_LAMBDA {
        constexpr int row = decltype(bi){}, column = decltype(bj){}, i = row * n / blocks, j = column * n / blocks;
        constexpr int rows = (row + 1) * n / blocks - i, columns = (column + 1) * n / blocks - j;
        between();
        multiply_block<rows, columns, T>(a + i * va.row, va, b + j * vb.column, vb, c + i * n + j, size, first);
      });
    });
  } else {
    const int blocks = (size + largest_block - 1) / largest_block;
    const auto begin = [&](int block) { return block * size / blocks; };
    for (int bi = 0; bi < blocks; ++bi)
      for (int bj = 0; bj < blocks; ++bj) {
        between();
        const int i = begin(bi), j = begin(bj), rows = begin(bi + 1) - i, columns = begin(bj + 1) - j;
        const Vector<T>*left = a + i * va.row, *right = b + j * vb.column;
        Vector<T>* out = c + i * size + j;
#define EQUITENSOR_CASE(r, c) \
    case 8 * r + c: multiply_block<r, c, T>(left, va, right, vb, out, size, first); break;
        switch (8 * rows + columns) {
          EQUITENSOR_CASE(5, 5) EQUITENSOR_CASE(5, 4) EQUITENSOR_CASE(4, 5) EQUITENSOR_CASE(4, 4) EQUITENSOR_CASE(4, 3) EQUITENSOR_CASE(3, 4) EQUITENSOR_CASE(3, 3) EQUITENSOR_CASE(3, 2)
          EQUITENSOR_CASE(2, 3) EQUITENSOR_CASE(2, 2) EQUITENSOR_CASE(2, 1) EQUITENSOR_CASE(1, 2) EQUITENSOR_CASE(1, 1)
        }
#undef EQUITENSOR_CASE
      }
  }
}
// c = a b, or c += a b; size x size matrices of vectors, c by rows.
template <class T, class Between>
inline void multiply_matrices(const Vector<T>* a, MatrixView va, const Vector<T>* b, MatrixView vb, Vector<T>* c, int size,
                              bool first, Between&& between) {
  switch (size) {
    case 5: return multiply_blocks<T>(a, va, b, vb, c, Int<5>{}, first, between);
    case 7: return multiply_blocks<T>(a, va, b, vb, c, Int<7>{}, first, between);
    case 9: return multiply_blocks<T>(a, va, b, vb, c, Int<9>{}, first, between);
    case 11: return multiply_blocks<T>(a, va, b, vb, c, Int<11>{}, first, between);
    case 13: return multiply_blocks<T>(a, va, b, vb, c, Int<13>{}, first, between);
    default: return multiply_blocks<T>(a, va, b, vb, c, size, first, between);
  }
}

template <class T>
struct MatrixBuffers {
  Vector<T>*tile[operand_count], *in_channel[operand_count], *matrix[operand_count];
  Vector<T>*out[slot_count], *out_channel[slot_count], *gradient[slot_count], *series;
  MatrixBuffers(const MatrixPlan<T>& plan, Scratch<T>& scratch) {
    const auto entries = [&](int s) { return long(plan.slots[s].parts) * plan.size * plan.size; };
    // The operands' order in memory: directions last, so that a forward pass is as compact as it can be.
    for (int s = 0; s < slot_count; ++s) {
      take_operand(plan, scratch, s);
      out[s] = scratch.take(RowWriter<T>::buffer_vectors(plan.slots[s].dim));
      out_channel[s] = scratch.take(plan.slots[s].components);
      gradient[s] = scratch.take(entries(s));
    }
    take_operand(plan, scratch, x_direction);
    take_operand(plan, scratch, y_direction);
    // X and Y are not needed any more when the output is read off: their places save 6 % at L = 5, where all of it nearly fills L1.
    if (plan.mul == 1 && plan.slots[2].dim >= entries(0)) matrix[x_operand] = out[2] + line<T>;
    // Both factors, their mirrors and the product, of degrees l1 + l2 < size together: fewer than Y has.
    series = matrix[y_operand];
  }

 private:
  void take_operand(const MatrixPlan<T>& plan, Scratch<T>& scratch, int o) {
    const MatrixSlot<T>& slot = plan.slots[slot_of(o)];
    tile[o] = scratch.take(slot.dim);
    in_channel[o] = scratch.take(slot.components);
    matrix[o] = scratch.take(long(slot.parts) * plan.size * plan.size);
  }
};

template <class T>
inline void to_matrix(const MatrixPlan<T>& plan, MatrixBuffers<T>& buffer, int o, int u) {
  const MatrixSlot<T>& slot = plan.slots[slot_of(o)];
  apply(slot.to_matrix, gather_channel<T>(slot, buffer.tile[o], u, buffer.in_channel[o]), buffer.matrix[o]);
  for (int part = 0; part < slot.parts; ++part) unfold<false>(buffer.matrix[o] + part * plan.size * plan.size, plan.size / 2);
}
template <class T>
inline const Vector<T>* channel_of(const MatrixPlan<T>& plan, const MatrixBuffers<T>& buffer, int o) {
  return plan.slots[slot_of(o)].direct ? buffer.tile[o] : buffer.in_channel[o];
}
template <class T, class D1, class D2, class D3>
EQUITENSOR_INLINE void multiply_top(const PlanTop<T>& top, D1 l1, D2 l2, D3 l3, const Vector<T>* x, const Vector<T>* y,
                                    Vector<T>* z, Vector<T>* f, bool first) {
  const int n1 = 2 * l1 + 1, n2 = 2 * l2 + 1, n3 = 2 * l3 + 1;
  Vector<T>*f_mirror = f + n1, *g = f_mirror + n1, *g_mirror = g + n2, *h = g_mirror + n2;
  for (int m = 0; m < n1; ++m) f[m] = top.scale1[m] * x[m], f_mirror[m] = top.mirror1[m] * x[m];
  for (int m = 0; m < n2; ++m) g[m] = top.scale2[m] * y[m], g_mirror[m] = top.mirror2[m] * y[m];
  multiply_series<Vector<T>>(f + l1, f_mirror + l1, l1, g + l2, g_mirror + l2, l2, h + l3, l3, true);
  for (int m = 0; m < n3; ++m) z[m] = first ? top.scale_out[m] * h[m] : z[m] + top.scale_out[m] * h[m];
}
// Unrolled where the full product of one L needs it: core/matrix.hpp.
template <class T>
inline void multiply_tops(const PlanTop<T>& top, const Vector<T>* x, const Vector<T>* y, Vector<T>* z, Vector<T>* series, bool first) {
  x += top.x_first, y += top.y_first, z += top.out_first;
  if (top.l1 == 6 && top.l2 == 6) return multiply_top<T>(top, Int<6>{}, Int<6>{}, Int<12>{}, x, y, z, series, first);
  multiply_top<T>(top, top.l1, top.l2, top.l1 + top.l2, x, y, z, series, first);
}
template <class T>
inline void from_matrix(const MatrixPlan<T>& plan, MatrixBuffers<T>& buffer, int s, int u, const Terms& terms, Vector<T>* out) {
  const MatrixSlot<T>& slot = plan.slots[s];
  for (int part = 0; part < slot.parts; ++part) unfold<true>(buffer.gradient[s] + part * plan.size * plan.size, plan.size / 2);
  Vector<T>* channel = slot.direct ? out : buffer.out_channel[s];
  apply(slot.from_matrix, buffer.gradient[s], channel);
  for (int i = 0; s == 2 && plan.top_count && i < terms.count; ++i) {
    const Term& term = terms.term[i];
    if (term.out != 2) continue;
    const Vector<T>*x = channel_of(plan, buffer, term.a), *y = channel_of(plan, buffer, term.b);
    for (int t = 0; t < plan.top_count; ++t) multiply_tops(plan.tops[t], x, y, channel, buffer.series, term.first && plan.tops[t].first);
  }
  scatter_channel<T>(slot, out, u, buffer.out_channel[s]);
}

// One term's matrix products.
template <class T, class Between>
inline void multiply_term(const MatrixPlan<T>& plan, MatrixBuffers<T>& buffer, const Term& term, Between&& between) {
  const int n = plan.size, entries = n * n;
  const MatrixView plain{n, 1}, transposed{1, n};
  unsigned written = term.first ? 0 : ~0u;
  for (int p = 0; p < plan.product_count; ++p) {
    const PlanProduct& product = plan.products[p];
    const auto operand = [&](int o, int part) { return buffer.matrix[o] + part * entries; };
    const int part = term.out == 0 ? product.part1 : term.out == 1 ? product.part2 : product.part_out;
    Vector<T>* out = buffer.gradient[term.out] + part * entries;
    const bool first = !(written >> part & 1);
    if (term.out == 0)  // Z Y^T
      multiply_matrices<T>(operand(term.b, product.part_out), plain, operand(term.a, product.part2), transposed, out, n, first, between);
    else if (term.out == 1)  // X^T Z
      multiply_matrices<T>(operand(term.a, product.part1), transposed, operand(term.b, product.part_out), plain, out, n, first, between);
    else
      multiply_matrices<T>(operand(term.a, product.part1), plain, operand(term.b, product.part2), plain, out, n, first, between);
    written |= 1u << part;
  }
}

template <class T>
void matrix(const MatrixPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  Scratch<T> scratch(memory);
  MatrixBuffers<T> buffer(plan, scratch);
  const Terms& terms = a.terms;
  RowWriter<T> writers[] = {
      {a, 0, plan.slots[0].dim, buffer.out[0]}, {a, 1, plan.slots[1].dim, buffer.out[1]}, {a, 2, plan.slots[2].dim, buffer.out[2]}};
  for_each_tile<T>(begin, end, a.stream, [&](const Tile& tile, bool first, bool last) {
    for (int o = 0; o < operand_count; ++o)
      if (terms.reads[o]) load_rows<T, false>(a.in[o], a.stride[slot_of(o)], plan.slots[slot_of(o)].dim, tile, buffer.tile[o]);
    const auto next = [&](int o) {
      const long stride = terms.reads[o] ? a.stride[slot_of(o)] : 0;
      return SpreadPrefetch<T>(a.in[o] + tile.ahead * stride, stride);
    };
    SpreadPrefetch<T> rows[operand_count] = {next(0), next(1), next(2), next(3), next(4)};
    const auto prefetch = [&] {
      for (SpreadPrefetch<T>& operand : rows) operand.template some<6>();
    };
    for (int u = 0; u < plan.mul; ++u) {
      for (int o = 0; o < operand_count; ++o)
        if (terms.reads[o]) to_matrix(plan, buffer, o, u);
      for (int i = 0; i < terms.count; ++i) multiply_term(plan, buffer, terms.term[i], prefetch);
      for (int s = 0; s < slot_count; ++s)
        if (terms.writes[s]) from_matrix(plan, buffer, s, u, terms, writers[s].tile());
    }
    for (RowWriter<T>& writer : writers) writer.write(tile, first, last);
  });
  for (RowWriter<T>& writer : writers) writer.finish();
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
  k.matrix = {matrix<T>, matrix_scratch<T>};
}
template void add_matrix(TypedKernels<float>&);
template void add_matrix(TypedKernels<double>&);

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
