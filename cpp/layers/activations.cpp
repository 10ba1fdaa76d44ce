#include "layers/activations.h"

#include "core/require.h"
#include "kernels/gradient_kernels.h"
#include "kernels/row_kernels.h"
#include "layers/row_blocks.h"

namespace blasformer {

namespace {

// That of RowKernels or GradientKernels.
template <class Kernels>
typename Kernels::Elementwise kernel_of(Activation activation, const Kernels& kernels) {
  switch (activation) {
    case Activation::relu: return kernels.relu;
    case Activation::gelu: return kernels.gelu;
    case Activation::gelu_tanh: return kernels.gelu_tanh;
    case Activation::gelu_sigmoid: return kernels.gelu_sigmoid;
    case Activation::silu: break;
  }
  return kernels.silu;
}

template <class T>
double nanoseconds_of(Activation activation) {  // per element
  return activation == Activation::relu ? 0.2 : sizeof(T) == 4 ? 0.4 : 1.2;
}

}  // namespace

Activation activation_from_name(const std::string& name) {
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  if (name == "gelu_sigmoid") return Activation::gelu_sigmoid;
  if (name == "silu") return Activation::silu;
  fail("activation must be relu, gelu, gelu_tanh, gelu_sigmoid or silu, got ", name);
}

template <class T>
void activate(Activation activation, const Elements<T>& x, Index size, const MutableElements<T>& y) {
  const auto kernel = kernel_of(activation, row_kernels<T>());
  // Every element is a row of its own.
  for_each_row_block(x, size, 1, y, nanoseconds_of<T>(activation),
                     [=](const T* source, Index, Index count, T* target) { kernel(source, count, target); });
}

template <class T>
void activate_backward(Activation activation, const Elements<T>& x, const Elements<T>& d_y, Index size,
                       const MutableElements<T>& d_x) {
  const auto kernel = kernel_of(activation, gradient_kernels<T>());
  const RowBlocks blocks = row_blocks(x, d_y, size, 1, d_x);
  for_each_row_block(blocks, x, d_y, 1, d_x, nanoseconds_of<T>(activation),
                     [=](const T* source, const T* gradient, Index block, T* target) {
                       kernel(source, gradient, blocks.rows_of(block), target, nullptr);
                     });
}

template <class T>
void activate_backward(Activation activation, const T* x, const T* d_y, Index size, T* d_x, T* y) {
  const auto kernel = kernel_of(activation, gradient_kernels<T>());
  const RowBlocks blocks(size, 1, kRowBlockElements);
  parallel_for(blocks.count(), nanoseconds_of<T>(activation) * static_cast<double>(size),
               [&](Index block, int) {
                 const Index i = blocks.first(block);
                 kernel(x + i, d_y + i, blocks.rows_of(block), d_x + i, y ? y + i : nullptr);
               });
}

template void activate(Activation, const Elements<float>&, Index, const MutableElements<float>&);
template void activate(Activation, const Elements<double>&, Index, const MutableElements<double>&);
template void activate_backward(Activation, const Elements<float>&, const Elements<float>&, Index,
                                const MutableElements<float>&);
template void activate_backward(Activation, const Elements<double>&, const Elements<double>&, Index,
                                const MutableElements<double>&);
template void activate_backward(Activation, const float*, const float*, Index, float*, float*);
template void activate_backward(Activation, const double*, const double*, Index, double*, double*);

}  // namespace blasformer
