// Which of the tables that were compiled for each instruction set is in use.

#include <cstdint>

#include "core/cpu.h"
#include "kernels/attention_kernels.h"
#include "kernels/cross_entropy_kernels.h"
#include "kernels/dropout_kernels.h"
#include "kernels/gated_kernels.h"
#include "kernels/gradient_kernels.h"
#include "kernels/half_kernels.h"
#include "kernels/math_kernels.h"
#include "kernels/optimiser_kernels.h"
#include "kernels/product_kernels.h"
#include "kernels/row_kernels.h"

namespace blasformer {

namespace baseline {
template <class Table>
const Table& table();
}
namespace avx2 {
template <class Table>
const Table& table();
}
namespace avx512 {
template <class Table>
const Table& table();
}

namespace {

template <class Table>
const Table& table_in_use() {
  switch (active_isa()) {
    case Isa::avx512: return avx512::table<Table>();
    case Isa::avx2: return avx2::table<Table>();
    case Isa::baseline: break;
  }
  return baseline::table<Table>();
}

}  // namespace

const HalfKernels& half_kernels() { return table_in_use<HalfKernels>(); }

template <class T, class Stored>
const ProductKernels<T, Stored>& product_kernels() {
  return table_in_use<ProductKernels<T, Stored>>();
}
template const ProductKernels<float>& product_kernels();
template const ProductKernels<double>& product_kernels();
template const ProductKernels<float, std::uint16_t>& product_kernels();

template <class T>
const InPlaceProductKernels<T>& in_place_product_kernels() {
  return table_in_use<InPlaceProductKernels<T>>();
}
template const InPlaceProductKernels<float>& in_place_product_kernels();
template const InPlaceProductKernels<double>& in_place_product_kernels();

template <class T>
const AttentionKernels<T>& attention_kernels() {
  return table_in_use<AttentionKernels<T>>();
}
template const AttentionKernels<float>& attention_kernels();
template const AttentionKernels<double>& attention_kernels();

template <class T>
const CrossEntropyKernels<T>& cross_entropy_kernels() {
  return table_in_use<CrossEntropyKernels<T>>();
}
template const CrossEntropyKernels<float>& cross_entropy_kernels();
template const CrossEntropyKernels<double>& cross_entropy_kernels();

template <class T>
const DropoutKernels<T>& dropout_kernels() {
  return table_in_use<DropoutKernels<T>>();
}
template const DropoutKernels<float>& dropout_kernels();
template const DropoutKernels<double>& dropout_kernels();

template <class T>
const GatedKernels<T>& gated_kernels() {
  return table_in_use<GatedKernels<T>>();
}
template const GatedKernels<float>& gated_kernels();
template const GatedKernels<double>& gated_kernels();

template <class T>
const GradientKernels<T>& gradient_kernels() {
  return table_in_use<GradientKernels<T>>();
}
template const GradientKernels<float>& gradient_kernels();
template const GradientKernels<double>& gradient_kernels();

template <class T>
const MathKernels<T>& math_kernels() {
  return table_in_use<MathKernels<T>>();
}
template const MathKernels<float>& math_kernels();
template const MathKernels<double>& math_kernels();

template <class T>
const OptimiserKernels<T>& optimiser_kernels() {
  return table_in_use<OptimiserKernels<T>>();
}
template const OptimiserKernels<float>& optimiser_kernels();
template const OptimiserKernels<double>& optimiser_kernels();

template <class T>
const RowKernels<T>& row_kernels() {
  return table_in_use<RowKernels<T>>();
}
template const RowKernels<float>& row_kernels();
template const RowKernels<double>& row_kernels();

}  // namespace blasformer
