// What operations are made from, by name: for headers that pass it on, which it costs nothing to read.
#pragma once

namespace equitensor {

struct ChannelSlot;
struct ClebschGordanPath;
struct Grid;
struct MatrixBlockPath;
struct SymmetricForm;
struct WeightedForm;

}  // namespace equitensor
