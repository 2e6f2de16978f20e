// SPDX-License-Identifier: Apache-2.0
// Which elements dropout keeps: the hash of tzgen/ops/dropout/mask.py, bit for bit.
#pragma once

#include <algorithm>

#include "simd.h"

namespace tzgen {

typedef uint32_t WordVector __attribute__((vector_size(VECTOR_BYTES)));
constexpr int64_t WORDS = LANES<float>;
constexpr uint32_t GOLDEN = 0x9E3779B9u;

template <class W>
static inline W mix(W h) {
  h ^= h >> 16;
  h *= 0x21F0AAADu;
  h ^= h >> 15;
  h *= 0xD35A2D97u;
  return h ^ (h >> 15);
}

// The rows of one call; `scale` multiplies what is kept.
struct Keep {
  uint32_t low, high, threshold;
  float scale;

  Keep(int64_t seed, double ratio) : low(uint32_t(seed)), high(uint32_t(uint64_t(seed) >> 32)) {
    const double word = 4294967296.0;
    threshold = uint32_t(std::min(std::nearbyint(ratio * word), word - 1));
    scale = float(word / (word - threshold));
  }

  uint32_t row_key(int64_t row) const { return mix(mix(low ^ uint32_t(row)) ^ high); }

  // `scale` or 0 for the columns from `column` on.
  FloatVector factors(uint32_t key, int64_t column) const {
    WordVector words;
    for (int lane = 0; lane < WORDS; lane++) words[lane] = uint32_t(lane) * GOLDEN;
    words = mix((words + uint32_t(column) * GOLDEN) ^ key);
    return words >= threshold ? splat<float>(scale) : FloatVector{};
  }
};

// Up to a whole vector; what is beyond `count` reads as zero and is not written.
static inline FloatVector load_some(const float* at, int64_t count) {
  if (count >= WORDS) return load<float>(at);
  FloatVector out{};
  std::memcpy(&out, at, size_t(count) * sizeof(float));
  return out;
}

static inline void store_some(float* at, FloatVector value, int64_t count) {
  std::memcpy(at, &value, size_t(std::min(count, WORDS)) * sizeof(float));
}

static inline float total(FloatVector value) {
  float sum = 0;
  for (int lane = 0; lane < WORDS; lane++) sum += value[lane];
  return sum;
}

}  // namespace tzgen
