/// <reference lib="esnext.disposable" preserve="true" />
// The public names.
export { Irreps } from './irreps'
export { wigner3j, wignerD, gauntCoefficient } from './wigner'
export { sphericalHarmonics } from './spherical_harmonics'
export { ClebschGordanTensorProduct } from './clebsch_gordan'
export { TensorSquare } from './tensor_square'
export { GauntTensorProduct } from './gaunt'
export { GauntPower, GauntProduct } from './gaunt_product'
export { MatrixTensorProduct } from './matrix'
export { Convolution } from './convolution'
export { Graph } from './graph'
export { Linear } from './linear'
export { SymmetricContraction } from './symmetric_contraction'
export { TensorProduct } from './operation'
export { backends } from './backends'
export { DeviceArray } from './device_array'
export { Stream, capture, CapturedGraph } from './stream'
export { EquitensorError, errorCodes } from './errors'

export type { Irrep, MulIr, IrrepsLike, IrrepsOrder } from './irreps'
export type { DType, ArrayOf } from './arrays'
export type { Layout, Backend, CommonOptions } from './options'
export type {
  BackwardOptions, Choice, Directions, DoubleBackwardOptions, ForwardOptions, Gradients, PassCost, Path, SecondGradients,
} from './operation'
export type { AsyncOptions } from './call'
export type { SphericalHarmonicsBackwardOptions, SphericalHarmonicsDoubleBackwardOptions, SphericalHarmonicsGradients, SphericalHarmonicsOptions } from './spherical_harmonics'
export type { ClebschGordanOptions, UnweightedOptions, WeightedOptions } from './clebsch_gordan'
export type { ConnectionMode, Instruction, NormalizationOptions } from './weighted'
export type { FactorOptions } from './channel_product'
export type { TensorSquareOptions } from './tensor_square'
export type { GauntOptions, SphereGrid } from './gaunt'
export type { GauntProductOptions } from './gaunt_product'
export type { MatrixOptions } from './matrix'
export type { ConvolutionOptions, EdgeSumOptions } from './convolution'
export type {
  LinearBackwardOptions, LinearDirections, LinearDoubleBackwardOptions, LinearGradients, LinearOptions, LinearPath, LinearSecondGradients,
} from './linear'
export type {
  ContractionDirections, ContractionGradients, ContractionSecondGradients, SymmetricContractionOptions, SymmetricPath,
} from './symmetric_contraction'
export type { Backends } from './backends'
export type { CudaDevice, Pass } from './native'
export type { ErrorCode } from './errors'
