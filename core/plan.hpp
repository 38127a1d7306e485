// What a kernel is given, on either backend: plain data, built once by <operation>_plan.hpp. No functions here: anything inline would be
// compiled for AVX-512 under a name that the baseline shares.
#pragma once
#include "call.hpp"
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
  const T* coefficients;  // [block][source][output]
  const int* sources;     // [block][source]
  const int* outputs;     // [block][output]
};
struct alignas(16) PlanMapBlock {
  int begin;       // of its sources in the map's `rows`; behind them its outputs, four ints in 16 bytes
  int pairs, odd;  // of sources, and whether there is one more, which is the first
  int output_count;
};
template <class T>
struct PlanMap {
  const PlanRun<T>* runs;
  int count;
  const PlanMapBlock* blocks;
  int block_count;
  const T* rows;  // of a source: the bits of its index, and its coefficients; whole 16 bytes
};

// Components first, first + step, ... of a row.
struct Strided {
  int first, step;
};

// Of a complex product (core/complex_products.hpp): components of orders m and -m.
struct alignas(16) ComplexProduct {
  int x[2], y[2];
};
// Products of components of a channel of x and one of y, and their map to outputs. Complex products, of four numbers each, come before the others.
// Rows are the products of one component of x, or of one pair of them, columns those of y. Row r is [row_begin[r], row_begin[r + 1]), column c the
// products column_product[column_begin[c]], ...; components are offsets from the channel's first one.
template <class T>
struct PlanProducts {
  const ComplexProduct* complex;
  const int *complex_row_begin, *complex_column_begin, *complex_column_product;
  int complex_count, complex_rows, complex_columns;
  const int *x_component, *y_component;
  const int *row_begin, *column_begin, *column_product;
  int count, rows, columns;
  int products;       // all numbers: 4 complex_count + count
  PlanMap<T> forward;   // products -> outputs
  PlanMap<T> backward;  // outputs -> products
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
  const struct PlanSegment* segments;  // otherwise of the compact outputs of one channel, which these put in place
  int segment_count, compact_outputs;
  Divisor by_outputs;
  int l1, l2;
  // In float32 on the CPU, of a pair of low degrees with all their paths, for the variants that have kernels for it (core/coupled_pair.hpp). Otherwise null.
  const T* coefficients;
  const int* degree_outputs;  // of l3 from |l1 - l2| on: its output of order 0, in the row or compact
  bool coupled_in_row;        // direct, and a degree's components lie side by side
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

// ---- Weighted products: channels of one operand (the lane operand) side by side, times a matrix that a channel of the other one (the
// matrix operand) makes: t_k = sum_i M_ik x_i with M_ik = sum_j C_ijk y_j. Every connection mode is segments of that, with or without a
// mix of the channels behind it.
struct PlanBlock {
  int offset, mul, components;
  bool by_component;  // in the row as [component][channel], as the kernels take them; otherwise as [channel][component]
  bool gradient_made;  // by an instruction that writes all of it before others add
};
struct PlanChannels {
  int matrix_channel, lane, lanes;  // this channel, and these of the lane operand
  int out, weight;                  // into the output's, by these weights of the instruction, from here on
  bool adds;                        // to what segments before have written
};
// Weights [pairs][mixed]: channels [first, first + count) of t times rows of weights, from `weight` on, `pitch` apart.
struct PlanMix {
  int first, count, weight, pitch;
};
template <class T>
struct PlanInstruction {
  int lane_operand, lane_block, matrix_block, out_block;
  int inputs, matrix_components, outputs;
  bool same_channel;  // every lane has a matrix of its own, of the same channel
  bool asks_ahead;    // the first that reads its block of the lane operand
  bool makes_gradient;  // and the first that writes its gradient, all of it
  bool adds;          // to what instructions before have written into the output block
  const PlanChannels* segments;
  int segment_count;
  int copies;             // 1; of a scalar, whose matrix is a multiple of the identity, the components: then M is one entry
  int entries, pitch;     // of M, [input][output]; padded
  bool by_nonzeros;       // M's gradient is contracted with the coefficients that are not zero; of few components with all of them, side by side
  T coefficient;          // of Wigner 3j symbols
  const T* coefficients;  // [j][pitch]: M[e] = sum_j coefficients[j][e] y_j
  // The same without the zeros: of entry e, and of component j.
  const int *of_entry, *of_entry_component, *of_component, *of_component_entry;
  const T *of_entry_value, *of_component_value;
  // Of an entry two of either, with zeros where there are fewer: orders m1 and m3 couple to m2 = m1 + m3 and m1 - m3 only.
  const int* two_components;
  const T* two_values;
  int weight, weights;     // -1 without
  int weight_columns;      // of weights (u, v) that are wanted as (v, u): the number of v; 0: as they are
  int mixed, channels;     // output channels of the mix, and channels of t; 0: t is the output itself
  const PlanMix* mixes;
  int mix_count;
};
inline constexpr int channelwise_degree = 3;  // cpu/channelwise.cpp
template <class T>
struct WeightedPlan {
  int dim[3], weights;
  const PlanBlock* blocks[3];
  int block_count[3];
  const PlanInstruction<T>* instructions;  // by output block
  int instruction_count;
  bool makes_matrices[2];  // operands that are some instruction's matrix operand
  bool mixes;  // all instructions do, with weights
  bool weights_in_order;  // an instruction's behind those of the one before, and no others
  bool channelwise;       // so they are, with one path an output block, all of channels of x with the one of y, between degrees to channelwise_degree
  int max_lanes, max_pitch, max_entries, max_staged, max_block;
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
  bool folded;  // as MatrixSlot's
  PlanMap<T> synthesis;  // components -> rings, [northern ring][part][even, odd][order + degree]; not folded: [the ring, its mirror image]
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

// A product of many factors, or a power of one, by values on the grid.
template <class T>
struct GauntProductPlan {
  int mul, rings, angles;
  int factors, power;         // power: of the one factor; otherwise 0
  int parts;                  // 2: values even and odd under inversion, multiplied as such
  GauntSlot<T> slots[max_factors + 1];  // of the factors, and the result
};

// Sums of terms plus or minus a b, of complex coefficients (core/fourier_terms.hpp): those of one kind and sign in a run.
struct alignas(16) PlanTermRun {
  int kind, begin, count;  // kind: 2 * TermKind + negative; factors[2 * begin], ... are the first a and b
  int doublings;           // of the sum, afterwards
};
struct alignas(16) PlanTermSum {
  int out, run_begin, run_end;
  bool real;
};
struct PlanTerms {
  const PlanTermSum* sums;
  const PlanTermRun* runs;
  const int* factors;
  int count;
};
// Sums and differences, in this order, of numbers first[0] and first[1], ...: first + second and first - second in their places.
struct PlanButterflies {
  const int* pairs;
  int count;
};
template <class T>
struct FourierSlot : PlanSlot {
  int degree, parts, coefficients;
  PlanMap<T> synthesis, analysis;      // components -> coefficients on the torus, and its transpose
  // FFT only: coefficients -> [theta][part][order + degree], and from there -> values at the angles phi; with the butterflies of the plan.
  PlanMap<T> to_rings, from_rings, to_angles, from_angles;
  const T* pairs;  // unrolled only: of each of full_pairs, in fourier_terms.hpp
};
// Products of two signals of every degree to d up to this, into every degree to 2d, and their gradients have unrolled kernels.
inline constexpr int fourier_unrolled_degree = 2;
template <class T>
struct FourierPlan {
  int mul;
  bool fft;               // product of values on the torus; otherwise the convolution term by term
  int unrolled;           // d, or 0
  int rings, angles;      // FFT: points in theta, half a circle, and in phi
  FourierSlot<T> slots[3];
  const PlanProduct* products;
  int product_count;
  PlanTerms terms[3];     // into each slot from the two others, in their order
  PlanButterflies ring_butterflies[2], angle_butterflies;  // rings: of cosines, of sines
};

template <class T>
struct MatrixSlot : PlanSlot {
  int parts;
  bool folded;  // always on the CPU. On a device not where all components are of one degree: half of a folded matrix (or ring) is zero then
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

// ---- Symmetric contraction: z = C (y, x) + linear terms, y = weights times components of x and of its pairs C (x, x); core/symmetric_contraction.hpp.
// The i-th term has row i of the weights; those of z come behind those of y.
struct PlanSymmetricTerm {
  int source, target, count;  // components, of x with the pairs behind it, and of y or z
  bool first;                 // into these components of y
};
template <class T>
struct SymmetricPlan {
  int mul, inputs, pairs, sums, outputs;  // components of a channel: of x, of the pairs, of y, of z
  int dim[2];
  const PlanBlock* blocks[2];  // of x and z
  int block_count[2];
  PlanProducts<T> squares;   // x x -> pairs
  PlanProducts<T> products;  // y x -> z
  const PlanSymmetricTerm *terms, *linear;
  int term_count, linear_count;
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
