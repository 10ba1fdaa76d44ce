#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "core/tensor.h"
#include "layers/initialiser.h"
#include "models/bert.h"

namespace blasformer {

using tests::message_of;

namespace {

BertSizes tiny() {
  BertSizes sizes;
  sizes.vocab_size = 31;
  sizes.hidden_size = 12;
  sizes.num_hidden_layers = 2;
  sizes.num_attention_heads = 3;
  sizes.intermediate_size = 20;
  sizes.max_position_embeddings = 70;
  sizes.type_vocab_size = 2;
  return sizes;
}

// Weights so large that the rows of attention are far from uniform.
BertModel<float> random_model() {
  BertModel<float> model(tiny());
  Initialiser random(1);
  BertModel<float>::each_parameter(model, [&](const std::string&, Tensor<float>& parameter) {
    random.normal(parameter);
    std::for_each_n(parameter.data(), parameter.size(), [](float& element) { element *= 0.4f; });
  });
  return model;
}

PackedTokens tokens_of(const std::vector<Index>& lengths) {
  PackedTokens tokens;
  tokens.starts = {0};
  for (const Index length : lengths) tokens.starts.push_back(tokens.starts.back() + length);
  const Index total = tokens.starts.back();
  tokens.ids = Tensor<std::int64_t>({total});
  tokens.positions = Tensor<std::int64_t>({total});
  tokens.types = Tensor<std::int64_t>({total});
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    for (Index position = 0; position < lengths[i]; ++position) {
      const Index row = tokens.starts[i] + position;
      tokens.ids.data()[row] = (7 * row + 3) % 31;
      tokens.positions.data()[row] = position;
      tokens.types.data()[row] = row % 2;
    }
  }
  return tokens;
}

PackedTokens only(const PackedTokens& tokens, std::size_t sequence) {
  const Index first = tokens.starts[sequence], length = tokens.starts[sequence + 1] - first;
  return {shared_rows(tokens.ids, first, {length}),
          shared_rows(tokens.positions, first, {length}),
          shared_rows(tokens.types, first, {length}),
          {0, length}};
}

bool close(const float* a, const float* b, Index size) {
  return std::equal(a, a + size, b,
                    [](float x, float y) { return std::abs(x - y) < 1e-4f * (1 + std::abs(y)); });
}

}  // namespace

TEST(bert_computes_each_sequence_as_if_it_were_alone) {
  const BertModel<float> model = random_model();
  const PackedTokens tokens = tokens_of({1, 0, 65, 17, 2, 0});
  std::map<Index, BertModel<float>::Asked> asked{{1, {{0, 2}, false, {}}}};
  const Tensor<float> together = model.forward(tokens, &asked), pooled = model.pool(together, tokens.starts);
  CHECK(asked.at(1).weights.size() == 4);
  std::size_t with_tokens = 0;
  for (std::size_t i = 0; i + 1 < tokens.starts.size(); ++i) {
    const float* const own_pooled = pooled.data() + static_cast<Index>(i) * 12;
    if (tokens.starts[i] == tokens.starts[i + 1]) {
      CHECK(std::all_of(own_pooled, own_pooled + 12, [](float value) { return value == 0; }));
      continue;
    }
    const PackedTokens own = only(tokens, i);
    std::map<Index, BertModel<float>::Asked> own_asked{{1, {{0, 2}, false, {}}}};
    const Tensor<float> alone = model.forward(own, &own_asked), alone_pooled = model.pool(alone, own.starts);
    CHECK(close(together.data() + tokens.starts[i] * 12, alone.data(), alone.size()));
    CHECK(close(own_pooled, alone_pooled.data(), 12));
    const Tensor<float>& weights = asked.at(1).weights[with_tokens++];
    CHECK((weights.shape() == Shape{2, own.starts[1], own.starts[1]}));
    CHECK(close(weights.data(), own_asked.at(1).weights[0].data(), weights.size()));
  }
}

TEST(bert_lists_its_parameters_in_place) {
  BertModel<double> model(tiny());
  Index count = 0;
  BertModel<double>::each_parameter(model, [&](const std::string& name, Tensor<double>& parameter) {
    std::fill_n(parameter.data(), parameter.size(),
                name == "encoder.layer.1.attention.self.key.weight" ? 2.0 : 1.0);
    count += parameter.size();
  });
  CHECK(count == parameter_count(model));
  CHECK(count == (31 + 70 + 2 + 2) * 12 + 2 * (4 * 13 * 12 + 20 * 13 + 12 * 21 + 4 * 12) + 13 * 12);
  const Tensor<double>& fused = model.layers[1].self_attn.in_proj_weight;
  for (Index i = 0; i < fused.size(); ++i) CHECK(fused.data()[i] == (i / 144 == 1 ? 2.0 : 1.0));
}

TEST(bert_refuses_tokens_that_do_not_fit) {
  const BertModel<float> model = random_model();
  PackedTokens tokens = tokens_of({3, 2});
  tokens.ids.data()[4] = 31;
  CHECK(message_of<std::out_of_range>([&] { model.forward(tokens); }).find("31") != std::string::npos);
  tokens.ids.data()[4] = 30;
  tokens.positions.data()[0] = -1;
  CHECK(message_of<std::out_of_range>([&] { model.forward(tokens); }).find("-1") != std::string::npos);
  tokens.positions = Tensor<std::int64_t>::full({4}, 0);
  CHECK(message_of<std::invalid_argument>([&] { model.forward(tokens); }) ==
        "positions and types must be as many as the 5 ids, got 4 and 5");
}

}  // namespace blasformer
