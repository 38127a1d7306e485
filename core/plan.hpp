// What a kernel is given, on either backend: plain data, built once by build_plan.hpp. No functions here: anything inline would be
// compiled for AVX-512 under a name that the baseline shares.
#pragma once
#include "irreps.hpp"

namespace equitensor {

// Division of numbers n below 2^16 by d below 2^16: the high half of (n + 1) * magic, where magic is 2^32 / d rounded up, less one.
struct Divisor {
  unsigned magic;
};

// See core/block_map.hpp. On the CPU blocks of one shape lie one behind the other: that, and not a list of blocks, keeps the branch predictor
// right and saves a third of the time of small maps. On a device a list is shared out to the warps.
template <class T>
struct PlanRun {
  int blocks, source_count, output_count;
  const T* coefficients;  // [block][source][output], rows as the store pads them
  const int* sources;     // [block][source]
  const int* outputs;     // [block][output]
};
struct alignas(16) PlanBlock {
  int coefficients, sources, outputs;  // first of them
  short source_count, output_count;
};
template <class T>
struct PlanMap {
  const PlanRun<T>* runs;
  int count;
  const PlanBlock* blocks;
  int block_count;
  const T* coefficients;
  const int* indices;
};

// Components first, first + step, ... of a row.
struct Strided {
  int first, step;
};

// Products of components of a channel of x and one of y, and their map to outputs.
template <class T>
struct PlanProducts {
  const int* x_component;      // of product p: offset of x's and y's component from the channel's first
  const int* y_component;
  const int* row_begin;        // products are sorted by x's component: row r is [row_begin[r], row_begin[r + 1])
  int rows, products;
  const int* column_begin;     // products of y's component c: column_product[column_begin[c] ...]
  const int* column_product;
  int columns;
  PlanMap<T> forward;          // products -> outputs
  PlanMap<T> backward;         // outputs -> products
};

// ---- Clebsch-Gordan: all paths of one pair of irreps (blocks of the inputs).
template <class T>
struct PlanPair : PlanProducts<T> {
  int mul1, mul2;
  Connection connection;
  bool triangular;             // in the row v counts less u (u - 1) / 2
  int x_offset, x_channel;     // component of channel 0 and the distance to the next channel's
  int y_offset, y_channel;
  bool direct;                 // one channel: the maps name components of the output row itself
  const struct PlanPlace* places;      // of every compact output
  const int* out_component;            // of every compact output of channels u = v = 0, in the row
  const struct PlanSegment* segments;  // otherwise of the compact outputs of one channel, which these put in place
  int segment_count, compact_outputs;
  Divisor by_outputs;
};
struct PlanPlace {
  int first, u_step, v_step;  // component of channels u, v in the row: first + u * u_step + v * v_step
};
struct PlanSegment {
  int compact, count;  // components [compact, compact + count)
  Strided output;      // of channels u = v = 0
  int u_step, v_step;  // distance to the output of the next u, of the next v
};
template <class T>
struct ClebschGordanPlan {
  int dim[3], max_products, max_compact;
  bool square;  // the second input is the first one
  const PlanPair<T>* pairs;
  int pair_count;
};

// ---- Gaunt and matrix products: components of one channel, split in parts of one parity.
struct PlanSlot {
  int dim, components;     // components of a channel
  const Strided* channel;  // component c of channel u lies at first + u * step
  bool direct;             // one channel, and component c lies at c
};

template <class T>
struct GauntSlot : PlanSlot {
  int degree, parts;
  PlanMap<T> synthesis;  // components -> rings, [northern ring][part][even, odd][order + degree]
  PlanMap<T> analysis;   // its transpose, with the quadrature weights
  // Pointwise product only: ring coefficients (order + degree) -> values even and odd in the angle, and back.
  PlanMap<T> to_angles, from_angles;
};
// Products of two signals of degree d up to this, into degree 2d, and their gradients have unrolled kernels.
inline constexpr int gaunt_unrolled_degree = 6;
template <class T>
struct GauntPlan {
  int mul, rings, angles;
  bool pointwise;  // product of values on the grid; otherwise of the ring's trigonometric coefficients
  GauntSlot<T> slots[3];
  const PlanProduct* products;
  int product_count;
};

template <class T>
struct MatrixSlot : PlanSlot {
  int parts;
  PlanMap<T> to_matrix;    // components -> [part][row][column]
  PlanMap<T> from_matrix;  // its transpose
};
// Outputs of degree l1 + l2, computed by their only path: core/matrix.hpp.
template <class T>
struct PlanTop {
  int l1, l2, x_first, y_first, out_first;  // component m = -l
  bool first;                               // of those that write these outputs
  const T *scale1, *mirror1, *scale2, *mirror2, *scale_out;  // mirror: with the sign (-1)^m
};
template <class T>
struct MatrixPlan {
  int mul, size;
  MatrixSlot<T> slots[3];
  const PlanProduct* products;
  int product_count;
  const PlanTop<T>* tops;
  int top_count;
};

// The block form, by its paths.
template <class T>
struct MatrixBlockPlan {
  int mul, max_products;
  PlanSlot slots[3];
  const PlanProducts<T>* chunks;  // each adds to the outputs
  int chunk_count;
};

template <class T>
struct HarmonicsPlan {
  int lmax, dim;
  bool normalize;
  const int* degree_begin;  // outputs of degree l: first component of each copy, [copies_begin[l], copies_begin[l + 1])
  const int* copies;
  const int* centre;        // component of order 0 of degree l's first copy, or -1
  const T* recurrence;      // a, b of legendre.hpp's recurrence for every (order, degree), then the diagonal
  const T* ladder;          // up, same, down of legendre.hpp's harmonic_ladder for every (order, degree), times scale[degree]
  const T* scale;           // normalisation of degree l
};

}  // namespace equitensor
