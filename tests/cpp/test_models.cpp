#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "check.h"
#include "core/tensor.h"
#include "layers/initialiser.h"
#include "layers/parameters.h"
#include "models/classifier.h"
#include "models/language_model.h"
#include "models/seq2seq.h"

namespace blasformer {

namespace {

using Ids = Tensor<std::int64_t>;

Ids ids_of(Shape shape, Index modulus, Index step = 7) {
  Ids ids(std::move(shape));
  for (Index i = 0; i < ids.size(); ++i) ids.data()[i] = (step * i + 3) % modulus;
  return ids;
}

Ids numbers(std::initializer_list<std::int64_t> values) {
  Ids ids({static_cast<Index>(values.size())});
  std::copy(values.begin(), values.end(), ids.data());
  return ids;
}

template <class Model>
Model initialised(Model model) {
  Initialiser random(1);
  model.initialise(random);
  Model::each_parameter(model, [&](const std::string&, auto& parameter) {
    auto noise = parameter.copy();
    random.normal(noise, 0.2);
    for (Index i = 0; i < parameter.size(); ++i) parameter.data()[i] += noise.data()[i];
  });
  return model;
}

// The change of the loss along a step down the gradient, over what the gradient says it is.
template <class Model, class Loss>
double agreement(Model& model, const Loss& loss) {
  Model gradients = gradients_of(model);
  const double before = loss(&gradients);
  std::vector<Tensor<double>> slopes;
  double square = 0;
  Model::each_parameter(gradients, [&](const std::string&, const Tensor<double>& gradient) {
    slopes.push_back(gradient);
    for (Index i = 0; i < gradient.size(); ++i) square += gradient.data()[i] * gradient.data()[i];
  });
  const double step = 1e-6;
  std::size_t index = 0;
  Model::each_parameter(model, [&](const std::string&, Tensor<double>& parameter) {
    const Tensor<double>& slope = slopes[index++];
    for (Index i = 0; i < parameter.size(); ++i) parameter.data()[i] -= step * slope.data()[i];
  });
  return (before - loss(nullptr)) / (step * square);
}

bool close(const double* a, const double* b, Index size) {
  return std::equal(a, a + size, b, [](double x, double y) { return std::abs(x - y) < 1e-10; });
}

LanguageModelSizes small_language_model() {
  LanguageModelSizes sizes{};
  sizes.vocab_size = 11;
  sizes.max_length = 9;
  sizes.d_model = 12;
  sizes.num_heads = 3;
  sizes.num_layers = 2;
  sizes.dim_feedforward = 20;
  sizes.num_kv_heads = 1;
  return sizes;
}

using SmallSeq2Seq =
    Seq2Seq<SinusoidalEncoding<double>, PostNormEncoderLayer<double>, PostNormDecoderLayer<double>>;

Seq2SeqSizes small_seq2seq() {
  Seq2SeqSizes sizes{};
  sizes.source_vocab_size = 7;
  sizes.target_vocab_size = 11;
  sizes.max_length = 9;
  sizes.d_model = 12;
  sizes.num_heads = 3;
  sizes.num_encoder_layers = sizes.num_decoder_layers = 2;
  sizes.dim_feedforward = 20;
  return sizes;
}

}  // namespace

template <template <class> class Family>
void check_that_the_loss_falls_as_its_gradient_says() {
  using Model = LanguageModel<double, Family>;
  auto model = initialised(Model(small_language_model()));
  const TokenSequences sequences{ids_of({2, 8}, 11), {}, numbers({8, 3}), {}};
  const Ids targets = ids_of({2, 8}, 11, 5);
  const double ratio = agreement(model, [&](Model* gradients) {
    return model.loss(sequences, targets, {}, 1, std::nullopt, gradients, Write::replace);
  });
  CHECK(std::abs(ratio - 1) < 1e-2);
}

TEST(the_loss_of_a_language_model_falls_as_its_gradient_says) {
  check_that_the_loss_falls_as_its_gradient_says<Gpt2>();
  check_that_the_loss_falls_as_its_gradient_says<Llama>();
}

template <template <class> class Family>
void check_that_added_tokens_have_the_logits_of_the_whole() {
  const auto model = initialised(LanguageModel<double, Family>(small_language_model()));
  const Ids ids = ids_of({2, 9}, 11);
  const Tensor<double> whole = model.forward({ids, {}, {}, {}});
  auto cache = model.new_cache(2, 9);
  Ids first({2, 5});
  for (Index b = 0; b < 2; ++b) std::copy_n(ids.data() + b * 9, 5, first.data() + b * 5);
  Tensor<double> logits = model.add_tokens(first, numbers({5, 2}), cache);
  CHECK(close(logits.data(), whole.data() + 4 * 11, 11));
  CHECK(close(logits.data() + 11, whole.data() + (9 + 1) * 11, 11));
  cache = cache.of_rows({1, 0});
  Ids next({2, 1});
  next.data()[0] = ids.data()[9 + 2];
  next.data()[1] = ids.data()[5];
  logits = model.add_tokens(next, numbers({1, 1}), cache);
  CHECK(close(logits.data(), whole.data() + (9 + 2) * 11, 11));
  CHECK(close(logits.data() + 11, whole.data() + 5 * 11, 11));
}

TEST(tokens_added_to_a_cache_have_the_logits_of_the_whole) {
  check_that_added_tokens_have_the_logits_of_the_whole<Gpt2>();
  check_that_added_tokens_have_the_logits_of_the_whole<Llama>();
}

TEST(the_loss_of_an_encoder_decoder_falls_as_its_gradient_says) {
  auto model = initialised(SmallSeq2Seq(small_seq2seq()));
  const SourceSequences<double> source{{ids_of({2, 5}, 7), {}, numbers({5, 2}), {}}, {}};
  const TokenSequences target{ids_of({2, 6}, 11), {}, numbers({4, 6}), {}};
  const Ids targets = ids_of({2, 6}, 11, 5);
  const double ratio = agreement(model, [&](SmallSeq2Seq* gradients) {
    return model.loss(source, target, targets, {}, 1, std::nullopt, gradients, Write::replace);
  });
  CHECK(std::abs(ratio - 1) < 1e-2);
}

TEST(several_targets_of_a_source_have_the_logits_of_the_whole) {
  const auto model = initialised(SmallSeq2Seq(small_seq2seq()));
  const SourceSequences<double> source{{ids_of({2, 5}, 7), {}, numbers({5, 2}), {}}, {}};
  auto cache = model.encode(source, 3);
  model.add_tokens(numbers({4, 4}), cache);
  cache = cache.of_rows({0, 1}, {0, 0, 1, 1});
  model.add_tokens(numbers({1, 2, 3, 5}), cache);
  cache = cache.of_rows({1}, {3, 2});
  const Tensor<double> logits = model.add_tokens(numbers({6, 7}), cache);
  const std::vector<std::int64_t> ids[] = {{4, 5, 6}, {4, 3, 7}};
  for (Index i = 0; i < 2; ++i) {
    Ids of_source({1, 5}), of_target({1, 3});
    std::copy_n(source.ids.data() + 5, 5, of_source.data());
    std::copy_n(ids[i].data(), 3, of_target.data());
    const TokenSequences own_target = {of_target, {}, {}, {}};
    const Tensor<double> whole = model.forward({{of_source, {}, numbers({2}), {}}, {}}, own_target);
    CHECK(close(logits.data() + i * 11, whole.data() + 2 * 11, 11));
  }
}

TEST(the_loss_of_a_classifier_falls_as_its_gradient_says) {
  ClassifierSizes sizes{};
  sizes.inputs = 4;
  sizes.num_classes = 3;
  sizes.max_length = 6;
  sizes.d_model = 12;
  sizes.num_heads = 3;
  sizes.num_layers = 2;
  sizes.dim_feedforward = 20;
  sizes.pooling = Pooling::first;
  using Model = Classifier<Linear<double>, PreNormEncoderLayer<double>>;
  auto model = initialised(Model(sizes));
  Tensor<double> x({2, 6, 4});
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = std::sin(static_cast<double>(i));
  const double ratio = agreement(model, [&](Model* gradients) {
    return model.loss(x, {numbers({6, 2}), {}}, numbers({2, 0}), {}, 1, std::nullopt, gradients,
                      Write::replace);
  });
  CHECK(std::abs(ratio - 1) < 1e-2);
}

}  // namespace blasformer
