#include "layers/gated_feed_forward.h"

#include <algorithm>
#include <memory>
#include <optional>

#include "core/require.h"
#include "core/thread_pool.h"
#include "kernels/gated_kernels.h"
#include "layers/chained_product.h"
#include "layers/destination.h"
#include "layers/dropout.h"
#include "layers/residual.h"

namespace blasformer {

namespace {

template <class T>
const GatedActivation<T>& kernel_of(Activation activation) {
  const GatedKernels<T>& kernels = gated_kernels<T>();
  switch (activation) {
    case Activation::relu: return kernels.relu;
    case Activation::gelu: return kernels.gelu;
    case Activation::gelu_tanh: return kernels.gelu_tanh;
    case Activation::gelu_sigmoid: return kernels.gelu_sigmoid;
    case Activation::silu: break;
  }
  return kernels.silu;
}

// body(first, count), in parallel, for parts of `size` elements.
template <class T, class Body>
void for_each_part(Index size, Activation activation, const Body& body) {
  constexpr Index kElementsPerTask = 16384;
  const double nanoseconds = activation == Activation::relu ? 0.3 : sizeof(T) == 4 ? 0.9 : 2.5;
  parallel_for(ceil_div(size, kElementsPerTask), nanoseconds * static_cast<double>(size),
               [&](Index task, int) {
                 const Index first = task * kElementsPerTask;
                 body(first, std::min(kElementsPerTask, size - first));
               });
}

// Inference by blocks of rows, without memory for the hidden layer. Nothing where the linear layers are to be
// computed one after the other.
template <class T>
std::optional<Tensor<T>> forward_by_blocks(const GatedFeedForward<T>& layer, const Tensor<T>& x,
                                           Tensor<T>* out) {
  const Index d_model = layer.down_proj.out_features(), dim_feedforward = layer.down_proj.in_features();
  const Index rows = x.size() / d_model;
  if (x.rank() == 0 || x.shape().back() != d_model || !chaining_pays(rows)) return std::nullopt;
  const auto packed = [&](const Linear<T>& linear) -> std::shared_ptr<const PackedRight<T>> {
    if (linear.adapter) return nullptr;
    const Index columns = linear.out_features();
    return linear.packed.of(linear.weight.data(), linear.in_features(), columns, rows, columns,
                            Pass::inference);
  };
  const auto gate = packed(layer.gate_proj), up = packed(layer.up_proj), down = packed(layer.down_proj);
  if (gate == nullptr || up == nullptr || down == nullptr) return std::nullopt;
  Tensor<T> y = memory_for(x.shape(), out);
  const auto kernel = kernel_of<T>(layer.activation).forward;
  const bool done = chained_product<T>(
      rows, {x.data(), d_model, 1},
      {{*gate, dim_feedforward, layer.gate_proj.bias.data()},
       {*up, dim_feedforward, layer.up_proj.bias.data()}},
      [&](T* hidden, Index stride, Index size) { kernel(hidden, hidden + stride, size, hidden); },
      {*down, d_model, layer.down_proj.bias.data()}, y.data(), d_model);
  return done ? std::optional(y) : std::nullopt;
}

}  // namespace

template <class T>
GatedFeedForward<T>::GatedFeedForward(Index d_model, Index dim_feedforward, Activation activation_,
                                      double dropout_p_, bool with_bias)
    : gate_proj((require(d_model > 0, "d_model must be positive, got ", d_model), d_model),
                (require(dim_feedforward > 0, "dim_feedforward must be positive, got ", dim_feedforward),
                 dim_feedforward),
                with_bias),
      up_proj(d_model, dim_feedforward, with_bias),
      down_proj(dim_feedforward, d_model, with_bias),
      activation(activation_),
      dropout_p(dropout_p_) {
  require_probability("dropout", dropout_p);
}

template <class T>
void GatedFeedForward<T>::initialise(Initialiser& random) {
  gate_proj.initialise(random);
  up_proj.initialise(random);
  down_proj.initialise(random);
}

template <class T>
Tensor<T> GatedFeedForward<T>::forward(const Tensor<T>& x, std::optional<std::uint64_t> seed, Saved* saved,
                                       Tensor<T>* out) const {
  const bool dropped = seed && dropout_p > 0;
  if (saved == nullptr && !dropped) {
    if (const auto y = forward_by_blocks(*this, x, out)) return *y;
  }
  const Pass pass = saved ? Pass::training : Pass::inference;
  const Tensor<T> gate = gate_proj.forward(x, nullptr, adapter_seed(seed, 0), pass);
  const Tensor<T> up = up_proj.forward(x, nullptr, adapter_seed(seed, 1), pass);
  Tensor<T> hidden = saved != nullptr ? Tensor<T>(gate.shape()) : gate;  // in its place if nothing is kept
  const auto kernel = kernel_of<T>(activation).forward;
  for_each_part<T>(hidden.size(), activation, [&](Index first, Index count) {
    kernel(gate.data() + first, up.data() + first, count, hidden.data() + first);
  });
  if (dropped) dropout(hidden.data(), hidden.size(), dropout_p, *seed, hidden.data());
  if (saved != nullptr) *saved = {x, gate, up, seed};
  return down_proj.forward(hidden, nullptr, adapter_seed(seed, 2), pass, out);
}

template <class T>
Tensor<T> GatedFeedForward<T>::backward(const Saved& saved, const Tensor<T>& d_y, GatedFeedForward& gradients,
                                        Write write) const {
  const Shape& shape = saved.gate.shape();
  const Index size = saved.gate.size();
  const bool dropped = saved.seed && dropout_p > 0;
  Tensor<T> d_hidden(shape), d_gate(shape), hidden(shape);
  down_proj.input_gradient(d_y, adapter_seed(saved.seed, 2), d_hidden);
  if (dropped) dropout(d_hidden.data(), size, dropout_p, *saved.seed, d_hidden.data());
  Tensor<T> d_up = d_hidden;  // in its place
  const auto kernel = kernel_of<T>(activation).backward;
  for_each_part<T>(size, activation, [&](Index first, Index count) {
    kernel(saved.gate.data() + first, saved.up.data() + first, d_hidden.data() + first, count,
           hidden.data() + first, d_gate.data() + first, d_up.data() + first);
  });
  if (dropped) dropout(hidden.data(), size, dropout_p, *saved.seed, hidden.data());
  down_proj.parameter_gradients(hidden, adapter_seed(saved.seed, 2), d_y, gradients.down_proj, write);
  Tensor<T> d_x =
      gate_proj.backward({saved.input, adapter_seed(saved.seed, 0)}, d_gate, gradients.gate_proj, write);
  add_to(up_proj.backward({saved.input, adapter_seed(saved.seed, 1)}, d_up, gradients.up_proj, write), d_x);
  return d_x;
}

template struct GatedFeedForward<float>;
template struct GatedFeedForward<double>;

}  // namespace blasformer
