#pragma once

#include <map>

#include "core/tensor.h"
#include "layers/decoder.h"
#include "layers/encoder.h"
#include "layers/initialiser.h"
#include "layers/parameters.h"
#include "layers/write.h"

namespace blasformer {

// Who may attend to whom within the source, and as DecoderArguments. The seed of a pass is that of encoder.
struct TransformerArguments {
  AttentionArguments encoder;
  DecoderArguments decoder;
};

// decoder(target, encoder(source)) (Vaswani et al. 2017), each with a last norm.
template <class EncoderLayer, class DecoderLayer>
struct Transformer {
  using Scalar = typename EncoderLayer::Scalar;
  using T = Scalar;
  using Encoder = TransformerEncoder<EncoderLayer>;
  using Decoder = TransformerDecoder<DecoderLayer>;
  Encoder encoder;
  Decoder decoder;

  struct Saved {
    typename Encoder::Saved encoder;
    typename Decoder::Saved decoder;

    template <class Visit>
    void each_tensor(Visit&& visit) const {
      encoder.each_tensor(visit);
      decoder.each_tensor(visit);
    }
  };
  // Attention weights to return, by the index of their layer.
  struct Asked {
    std::map<Index, AskedWeights<T>> encoder;
    std::map<Index, AskedDecoderWeights<T>> decoder;
  };
  struct InputGradients {
    Tensor<T> source, target;

    template <class Visit>
    void each_tensor(Visit&& visit) const {
      visit(source);
      visit(target);
    }
  };

  Transformer(const TransformerLayerSizes& sizes, Index num_encoder_layers, Index num_decoder_layers);

  Index d_model() const { return encoder.layers.front().d_model(); }
  // Every matrix as Glorot and Bengio 2010, as PyTorch does; the rest as the layers do.
  void initialise(Initialiser& random);
  Tensor<T> forward(const Tensor<T>& source, const Tensor<T>& target,
                    const TransformerArguments& arguments = {}, Saved* saved = nullptr,
                    Asked* asked = nullptr, Tensor<T>* out = nullptr) const;
  // The two halves of it, for inference: the memory of a source, and what the target is given it.
  Tensor<T> encode(const Tensor<T>& source, const AttentionArguments& arguments = {},
                   Tensor<T>* out = nullptr) const;
  Tensor<T> decode(const Tensor<T>& target, const Tensor<T>& memory, const DecoderArguments& arguments = {},
                   Tensor<T>* out = nullptr) const;
  InputGradients backward(const Saved& saved, const Tensor<T>& d_y, Transformer& gradients,
                          Write write) const;

  template <class Self, class Visit>
  static void each_parameter(Self& self, Visit&& visit) {
    each_parameter_of("encoder", self.encoder, visit);
    each_parameter_of("decoder", self.decoder, visit);
  }
  template <class Self, class Visit>
  static void each_linear(Self& self, Visit&& visit) {
    each_linear_of("encoder", self.encoder, visit);
    each_linear_of("decoder", self.decoder, visit);
  }

 private:
  // The halves, with their errors in the words of the whole.
  Tensor<T> run_encoder(const Tensor<T>& source, const AttentionArguments& arguments, Saved* saved,
                        Asked* asked, Tensor<T>* out) const;
  Tensor<T> run_decoder(const Tensor<T>& target, const Tensor<T>& memory, const DecoderArguments& arguments,
                        Saved* saved, Asked* asked, Tensor<T>* out) const;
};

}  // namespace blasformer
