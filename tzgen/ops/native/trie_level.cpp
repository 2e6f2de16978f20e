// SPDX-License-Identifier: Apache-2.0
// One level of a trie-constrained beam search: the contract is in tzgen/ops/trie_level/__init__.py.
//
// A row at a time: the logits of its beams are read for the log of their sum of exponentials, then
// only legal children are looked at.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "simd.h"

namespace tzgen {
namespace {

constexpr float NONE = -std::numeric_limits<float>::infinity();
constexpr int W = LANES<float>;

// A candidate as one number, smallest for the best: the bits of -score (scores are at most 0, and
// bits of positive floats are ordered as they are) above its place among the row's candidates.
inline uint64_t key_of(float score, uint32_t place) {
  uint32_t bits;
  const float below = std::fabs(score);  // -score may be -0.0
  std::memcpy(&bits, &below, sizeof(bits));
  return uint64_t(bits) << 32 | place;
}

inline float score_of(uint64_t key) {
  const uint32_t bits = uint32_t(key >> 32);
  float below;
  std::memcpy(&below, &bits, sizeof(below));
  return -below;
}

// The `width` smallest of the keys put in. Most are turned away by one comparison with the limit,
// which falls each time that the buffer is full and is cut down.
struct Best {
  size_t width, room;
  std::vector<uint64_t> keys;
  uint64_t limit;
  float lowest;  // score of the limit

  explicit Best(int64_t k) : width(size_t(k)), room(size_t(4 * k + 64)) { keys.reserve(room); }

  void clear() {
    keys.clear();
    limit = key_of(NONE, 0);  // neither -inf nor NaN
    lowest = NONE;
  }
  void put(uint64_t key) {
    if (key >= limit) return;
    keys.push_back(key);
    if (keys.size() == room) cut();
  }
  void cut() {
    if (keys.size() < width) return;
    std::nth_element(keys.begin(), keys.begin() + (width - 1), keys.end());
    keys.resize(width);
    limit = keys.back();
    lowest = score_of(limit);
  }
};

// log(sum(exp(x))); -inf where all are -inf, NaN where one is.
float log_sum_exp(const float* x, int64_t count) {
  float peak = NONE;
  FloatVector highest = splat<float>(NONE);
  int64_t c = 0;
  for (; c + W <= count; c += W) {
    const auto value = load<float>(x + c);
    highest = value > highest ? value : highest;
  }
  for (int lane = 0; lane < W; lane++) peak = std::max(peak, highest[lane]);
  for (int64_t rest = c; rest < count; rest++) peak = std::max(peak, x[rest]);
  if (peak == NONE) return NONE;
  FloatVector sum{};
  double total = 0;
  for (c = 0; c + W <= count; c += W) {
    const auto below = load<float>(x + c) - peak;
    // exponential() stops at e^-87, and takes NaN for that: both are put right here
    sum += below > -87.f ? exponential(below) : (below == below ? splat<float>(0.f) : below);
  }
  for (int lane = 0; lane < W; lane++) total += sum[lane];
  for (; c < count; c++) total += std::exp(x[c] - peak);
  return peak + float(std::log(total));
}

struct Level {
  int64_t size, num_parents, num_nodes, width;
  const int32_t* tokens;
  const int64_t* indptr;
  bool renormalize;
};

// Nodes that a row may not enter: excluded from its sub-catalogue, or with nothing left to see.
struct Barred {
  const at::BFloat16* alive;  // by node, 0 or -inf; null: all
  const int64_t *nodes, *parents;  // ascending nodes; parents < num_parents where one is dead
  int64_t count;

  bool operator()(int64_t node, const Level& level) const {
    if (alive && float(alive[node]) != 0) return true;
    if (!count) return false;
    const auto at = std::lower_bound(nodes, nodes + count, node) - nodes;
    return at < count && nodes[at] == node && parents[at] < level.num_parents;
  }
};

// Logits of the children of one beam, -inf at those barred; how many there are.
int64_t gather(const Level& level, const Barred& barred, int64_t node, const float* logits,
               float* values) {
  const int64_t first = level.indptr[node], count = level.indptr[node + 1] - first;
  const int32_t* tokens = level.tokens + first;
  for (int64_t c = 0; c < count; c++) values[c] = logits[tokens[c]];
  if (barred.alive || barred.count)
    for (int64_t c = 0; c < count; c++)
      if (barred(first + c, level)) values[c] = NONE;
  return count;
}

// What one thread needs for a row.
struct Scratch {
  Best best;
  std::vector<float> values;
  std::vector<std::pair<float, int64_t>> order;  // (-score, beam)
};

// The best children of a row's beams into scratch.best, by place = beam * V + child of the beam.
// Good beams first, because a child never has more than its beam: past the limit the rest is skipped.
void row(const Level& level, const Barred& barred, int64_t beams, const float* logits,
         const float* scores, const int64_t* nodes, Scratch& s) {
  s.best.clear();
  s.order.clear();
  for (int64_t beam = 0; beam < beams; beam++)
    if (nodes[beam] < level.num_parents) s.order.emplace_back(-scores[beam], beam);
  std::sort(s.order.begin(), s.order.end());
  for (const auto& [below, beam] : s.order) {
    if (key_of(-below, 0) > s.best.limit) break;
    const float* mine = logits + beam * level.size;
    float* values = s.values.data();
    const int64_t count = gather(level, barred, nodes[beam], mine, values);
    const float norm = log_sum_exp(level.renormalize ? values : mine,
                                   level.renormalize ? count : level.size);
    const float before = scores[beam];
    for (int64_t c = 0; c < count; c++) {
      const float share = values[c] - norm;
      values[c] = before + (share > 0 ? 0 : share);  // above 0 by rounding alone; NaN stays
    }
    const auto place = uint32_t(beam * level.size);
    for (int64_t c = 0; c < count; c++)
      if (values[c] >= s.best.lowest) s.best.put(key_of(values[c], place + uint32_t(c)));
  }
  s.best.cut();
  std::sort(s.best.keys.begin(), s.best.keys.end(), [](uint64_t a, uint64_t b) {
    return uint32_t(a) < uint32_t(b);  // by place, which ascends with the node
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> trie_level(
    const at::Tensor& logits, const at::Tensor& scores, const at::Tensor& nodes,
    const at::Tensor& tokens, const at::Tensor& indptr, const std::optional<at::Tensor>& alive,
    const std::optional<at::Tensor>& choice, const std::optional<at::Tensor>& dead_nodes,
    const std::optional<at::Tensor>& dead_parents, int64_t num_nodes, int64_t width,
    bool renormalize) {
  const int64_t batch = nodes.size(0), beams = nodes.size(1), size = logits.size(-1);
  TORCH_CHECK(beams * size < int64_t(1) << 32, "trie_level: beams times codes pass 2^32");
  const auto x = logits.contiguous();
  const auto before = scores.contiguous(), at = nodes.contiguous();
  const Level level{size,
                    indptr.size(0) - 2,
                    num_nodes,
                    width,
                    tokens.const_data_ptr<int32_t>(),
                    indptr.const_data_ptr<int64_t>(),
                    renormalize};
  auto new_scores = at::full({batch, width}, NONE, scores.options());
  auto new_nodes = at::full({batch, width}, num_nodes, nodes.options());
  auto new_beams = at::zeros({batch, width}, nodes.options());
  auto new_tokens = at::zeros({batch, width}, nodes.options());
  const float* values = x.const_data_ptr<float>();
  const float* given = before.const_data_ptr<float>();
  const int64_t* places = at.const_data_ptr<int64_t>();
  float* out_scores = new_scores.data_ptr<float>();
  int64_t* out_nodes = new_nodes.data_ptr<int64_t>();
  int64_t* out_beams = new_beams.data_ptr<int64_t>();
  int64_t* out_tokens = new_tokens.data_ptr<int64_t>();
  const int64_t dead_count = dead_nodes ? dead_nodes->size(1) : 0;
  const int64_t stride = alive ? alive->size(1) : 0;
  at::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    Scratch s{Best(width), std::vector<float>(size), {}};
    for (int64_t b = begin; b < end; b++) {
      const Barred barred{
          alive ? alive->const_data_ptr<at::BFloat16>() +
                      stride * choice->const_data_ptr<int64_t>()[b]
                : nullptr,
          dead_count ? dead_nodes->const_data_ptr<int64_t>() + b * dead_count : nullptr,
          dead_count ? dead_parents->const_data_ptr<int64_t>() + b * dead_count : nullptr,
          dead_count};
      row(level, barred, beams, values + b * beams * size, given + b * beams, places + b * beams,
          s);
      for (size_t place = 0; place < s.best.keys.size(); place++) {
        const int64_t to = b * width + int64_t(place), from = uint32_t(s.best.keys[place]);
        const int64_t beam = from / size;
        const int64_t node = level.indptr[places[b * beams + beam]] + from % size;
        out_scores[to] = score_of(s.best.keys[place]);
        out_nodes[to] = node;
        out_beams[to] = beam;
        out_tokens[to] = level.tokens[node];
      }
    }
  });
  return {new_scores, new_nodes, new_beams, new_tokens};
}

}  // namespace
}  // namespace tzgen

TORCH_LIBRARY_FRAGMENT(tzgen_native, library) {
  library.def(
      "trie_level(Tensor logits, Tensor scores, Tensor nodes, Tensor tokens, Tensor indptr, "
      "Tensor? alive, Tensor? choice, Tensor? dead_nodes, Tensor? dead_parents, int num_nodes, "
      "int width, bool renormalize) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(tzgen_native, CPU, library) { library.impl("trie_level", tzgen::trie_level); }
