// SPDX-License-Identifier: Apache-2.0
// The linear halves of a STU layer for few tokens, cut into tasks; stu_layers.cpp puts them in order.
//
// Weights are left operands where they lie and tokens right ones, in panels of PANEL tokens: with
// few tokens it does not pay to pack a weight, and each is read once for all of them.
#pragma once

#include <array>

#include "hstu_cached.h"

namespace tzgen::parts {

constexpr int64_t CHUNK = 32;  // rows of a weight that a task multiplies with all panels
template <class T>
constexpr int64_t GROUP = std::min<int64_t>(PANEL<T>, 16);  // tokens that one task packs

// Tokens as right operands, [panels][width][PANEL].
template <class T>
struct Panels {
  T* data;
  int64_t tokens, width;

  int64_t count() const { return (tokens + PANEL<T> - 1) / PANEL<T>; }
  int64_t groups() const { return (tokens + GROUP<T> - 1) / GROUP<T>; }
  int64_t size() const { return count() * width * PANEL<T>; }
  int64_t held(int64_t panel) const { return std::min<int64_t>(PANEL<T>, tokens - panel * PANEL<T>); }
  const T* at(int64_t panel) const { return data + panel * width * PANEL<T>; }

  // `some` lines [width] of tokens from `first` on, which begins a group; the rest is zero.
  void put(int64_t first, int64_t some, const T* lines) const {
    T* to = data + first / PANEL<T> * width * PANEL<T> + first % PANEL<T>;
    for (int64_t c = 0; c < width; c++, to += PANEL<T>)
      for (int64_t i = 0; i < GROUP<T>; i++) to[i] = i < some ? lines[i * width + c] : T(0);
  }
};

template <class T>
struct Scratch {  // of each thread
  Buffer<T> lines, products;
};

// out = (x - mean) / sqrt(variance + eps)
template <class T>
static void normalise(const T* x, int64_t width, double eps, T* out) {
  constexpr int64_t N = LANES<T>;
  typename Vec<T>::type sums{}, squares{};
  T sum = 0, square = 0;
  int64_t c = 0;
  for (; c + N <= width; c += N) sums += load<T>(x + c);
  for (; c < width; c++) sum += x[c];
  for (int64_t lane = 0; lane < N; lane++) sum += sums[lane];
  const T mean = sum / T(width);
  for (c = 0; c + N <= width; c += N) {
    const auto centred = load<T>(x + c) - mean;
    squares += centred * centred;
  }
  for (; c < width; c++) square += (x[c] - mean) * (x[c] - mean);
  for (int64_t lane = 0; lane < N; lane++) square += squares[lane];
  const T rstd = 1 / std::sqrt(square / T(width) + T(eps));
  for (c = 0; c < width; c++) out[c] = (x[c] - mean) * rstd;
}

// products[r][i] of `rows` rows of a weight and a panel of tokens, [rows][lanes]; gives lanes.
template <class T>
static int64_t times(const T* weight, int64_t rows, const Panels<T>& tokens, int64_t panel,
                     T* products) {
  const int64_t lanes = up(tokens.held(panel), HALF<T>), depth = tokens.width;
  for (int64_t r = 0; r < rows; r += ROWS) {
    const int64_t some = std::min<int64_t>(ROWS, rows - r);
    const T* after = weight + (r + some) * depth;  // fetched while these rows are multiplied
    if (panel == 0 && r + some < rows)
      for (int64_t at = 0; at < std::min<int64_t>(ROWS, rows - r - some) * depth;
           at += 64 / int64_t(sizeof(T)))
        __builtin_prefetch(after + at, 0, 2);
    score<T>(some, lanes, depth, weight + r * depth, depth, tokens.at(panel), products + r * lanes);
  }
  return lanes;
}

// u, v, q, k = SiLU on some of  LayerNorm(x) W^T + b
template <class T>
struct Input {
  const T *x, *norm_weight, *norm_bias, *weight, *bias;
  double eps;
  Panels<T> normed;
  std::array<T*, 4> out;         // [L, widths[letter]], or null where it is not wanted
  std::array<int64_t, 4> width;  // in the order of the rows of the weight
  std::array<bool, 4> activated;
  std::vector<std::array<int64_t, 3>> chunks;  // letter, its first row there, rows

  void cut() {
    for (int64_t letter = 0; letter < 4; letter++)
      for (int64_t row = 0; out[letter] != nullptr && row < width[letter]; row += CHUNK)
        chunks.push_back({letter, row, std::min(CHUNK, width[letter] - row)});
  }

  void norm(int64_t group, Scratch<T>& s) const {
    const int64_t dim = normed.width, first = group * GROUP<T>;
    const int64_t some = std::min(GROUP<T>, normed.tokens - first);
    T* lines = s.lines.take(GROUP<T> * dim);
    for (int64_t i = 0; i < some; i++) {
      T* line = lines + i * dim;
      normalise(x + (first + i) * dim, dim, eps, line);
      for (int64_t c = 0; c < dim; c++) line[c] = line[c] * norm_weight[c] + norm_bias[c];
    }
    normed.put(first, some, lines);
  }

  void project(int64_t chunk, Scratch<T>& s) const {
    const auto [letter, first, rows] = chunks[chunk];
    int64_t row = first;
    for (int64_t before = 0; before < letter; before++) row += width[before];
    T* products = s.products.take((CHUNK + 1) * PANEL<T>);  // SiLU runs to a whole vector
    for (int64_t panel = 0; panel < normed.count(); panel++) {
      const int64_t lanes = times(weight + row * normed.width, rows, normed, panel, products);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < lanes; i++) products[r * lanes + i] += bias[row + r];
      if (activated[letter]) silu_inplace<T>(products, rows * lanes);
      T* to = out[letter] + panel * PANEL<T> * width[letter] + first;
      for (int64_t i = 0; i < normed.held(panel); i++, to += width[letter])
        for (int64_t r = 0; r < rows; r++) to[r] = products[r * lanes + i];
    }
  }
};

// out = x + concat[s, O, s * Norm(O)] W^T  or  x + (s * Norm(O)) W^T
template <class T>
struct Output {
  const T *x, *s, *attended, *norm_weight, *norm_bias, *weight;
  double eps;
  int64_t width, groups, dim;
  bool by_group, concat;  // by_group: a norm's weight and bias a group, else a column
  Panels<T> gated;
  T* out;

  int64_t chunks() const { return (dim + CHUNK / 2 - 1) / (CHUNK / 2); }

  void gate(int64_t group, Scratch<T>& scratch) const {
    const int64_t first = group * GROUP<T>, step = width / groups;
    const int64_t some = std::min(GROUP<T>, gated.tokens - first);
    T* lines = scratch.lines.take(GROUP<T> * gated.width);
    for (int64_t i = 0; i < some; i++) {
      const T *here = attended + (first + i) * width, *open = s + (first + i) * width;
      T* line = lines + i * gated.width;
      T* last = line + gated.width - width;
      for (int64_t g = 0; g < groups; g++) normalise(here + g * step, step, eps, last + g * step);
      for (int64_t c = 0; c < width; c++) {
        const int64_t at = by_group ? c / step : c;
        last[c] = open[c] * (last[c] * norm_weight[at] + norm_bias[at]);
      }
      if (!concat) continue;
      std::copy(open, open + width, line);
      std::copy(here, here + width, line + width);
    }
    gated.put(first, some, lines);
  }

  void project(int64_t chunk, Scratch<T>& scratch) const {
    const int64_t row = chunk * (CHUNK / 2), rows = std::min(CHUNK / 2, dim - row);
    T* products = scratch.products.take((CHUNK + 1) * PANEL<T>);
    for (int64_t panel = 0; panel < gated.count(); panel++) {
      const int64_t lanes = times(weight + row * gated.width, rows, gated, panel, products);
      for (int64_t i = 0; i < gated.held(panel); i++) {
        const int64_t at = (panel * PANEL<T> + i) * dim + row;
        for (int64_t r = 0; r < rows; r++) out[at + r] = x[at + r] + products[r * lanes + i];
      }
    }
  }
};

}  // namespace tzgen::parts
