// SPDX-License-Identifier: Apache-2.0
// Cached STU attention: new queries against keys that lie in a cache, in one piece or in pages, and
// then among the new tokens. Nothing of the cache is copied: scores are computed transposed, keys
// by queries, so that keys are the left operand and values the right one, both where they lie.
//
// A task is (row, head, block of new queries). It packs its queries in panels and walks the keys
// they can see run by run, in tiles that depend on the row alone.
#pragma once

#include "hstu_task.h"
#include "in_place.h"

namespace tzgen::cached {

constexpr int64_t TILE = 128;   // keys of a tile: its scores for one panel stay in the first cache
constexpr int64_t BLOCK = 96;   // queries of a task

// Keys and values of consecutive places of a row: token t at k + (t - first) * k_token.
template <class T>
struct Run {
  int64_t first, last;
  const T *k, *v;
  int64_t k_token, k_head, v_token, v_head;
};

// New tokens as [L, H, width], the numbers of a head side by side.
template <class T>
struct Tokens {
  const T* data;
  int64_t count, token, head;

  explicit Tokens(const at::Tensor& x)
      : data(x.const_data_ptr<T>()), count(x.size(0)), token(x.stride(0)), head(x.stride(1)) {}
  Tokens(const T* packed, int64_t tokens, int64_t heads, int64_t width)
      : data(packed), count(tokens), token(heads * width), head(width) {}
  const T* at(int64_t place, int64_t which) const { return data + place * token + which * head; }
};

template <class T>
struct Row {
  int64_t start, cached, count, end;  // first new token, cached and new tokens, history's end
  std::vector<Run<T>> runs;
  std::vector<int64_t> times;  // of all its tokens, where time is read

  int64_t length() const { return cached + count; }
};

template <class T>
struct Scratch {
  Buffer<T> queries, scores, sums;
  std::vector<Seen> seen;
};

template <class T>
struct Forward {
  const std::vector<Row<T>>& rows;
  const Mask& mask;
  const Bias<T>& bias;
  Tokens<T> q, k, v;
  Sink out;
  T alpha, divisor;
  int64_t d, h, wide;  // attention_dim, hidden_dim, the latter in whole panels

  void operator()(const Task& task, size_t, Scratch<T>& scratch) const {
    const Row<T>& row = rows[task.row];
    const int64_t some = task.last - task.first, panels = up(some, PANEL<T>) / PANEL<T>;
    T* queries = scratch.queries.take(panels * d * PANEL<T>);
    T* scores = scratch.scores.take((TILE + 1) * PANEL<T>);  // SiLU runs to a whole vector
    T* sums = scratch.sums.take(panels * PANEL<T> * wide);
    std::fill(queries, queries + panels * d * PANEL<T>, T(0));
    std::fill(sums, sums + panels * PANEL<T> * wide, T(0));
    scratch.seen.resize(some);
    for (int64_t i = 0; i < some; i++) {
      scratch.seen[i] = seen_by(row.cached + task.first + i, row.length(), row.end, mask);
      const T* from = q.at(row.start + task.first + i, task.head);
      T* to = queries + i / PANEL<T> * d * PANEL<T> + i % PANEL<T>;
      for (int64_t c = 0; c < d; c++) to[c * PANEL<T>] = alpha * from[c];
    }
    const Spans spans = spans_of(scratch.seen.data(), some, 1);
    for (int s = 0; s < spans.count; s++)
      for (const Run<T>& run : row.runs) {
        const int64_t stop = std::min(spans.at[s].last, run.last);
        for (int64_t low = std::max(spans.at[s].first, run.first); low < stop; low += TILE)
          for (int64_t panel = 0; panel < panels; panel++)
            tile_of(task, row, run, panel, some, low, std::min(low + TILE, stop),
                    scratch.seen.data(), queries, scores, sums);
      }
    for (int64_t i = 0; i < some; i++) {
      T* sum = sums + i * wide;
      if (row.cached + task.first + i >= row.end) own(task, row, task.first + i, sum);
      out.write<T>(row.start + task.first + i, task.head, 1 / divisor, sum);
    }
  }

  // Keys [low, high) of a run against one panel of queries.
  void tile_of(const Task& task, const Row<T>& row, const Run<T>& run, int64_t panel, int64_t some,
               int64_t low, int64_t high, const Seen* seen, const T* queries, T* scores,
               T* sums) const {
    const int64_t first = panel * PANEL<T>, count = std::min(PANEL<T> + 0L, some - first);
    const int64_t width = up(count, HALF<T>);
    Stretch hull = {high, low};
    for (int64_t i = 0; i < count; i++) {
      const Stretch one = hull_in(seen[first + i], low, high);
      if (one.first < one.last)
        hull = {std::min(hull.first, one.first), std::max(hull.last, one.last)};
    }
    if (hull.first >= hull.last) return;
    const T* keys = run.k + (hull.first - run.first) * run.k_token + task.head * run.k_head;
    const T* values = run.v + (hull.first - run.first) * run.v_token + task.head * run.v_head;
    const int64_t depth = hull.last - hull.first;
    if (panel == 0) fetch(values, depth, run.v_token, h);  // they come while scores are computed
    score<T>(depth, width, d, keys, run.k_token, queries + first * d, scores);
    if (panel == 0)  // the next tile's keys come while values are summed
      fetch(keys + depth * run.k_token, std::min(TILE, run.last - hull.last), run.k_token, d);
    if (bias.position != nullptr || bias.time != nullptr)
      add_bias(task, row, first, count, hull, width, scores);
    silu_inplace<T>(scores, depth * width);
    for (int64_t i = 0; i < count; i++) {
      const int64_t place = row.cached + task.first + first + i;
      clear(seen[first + i], place, row, hull, width, scores + i);
    }
    for (int64_t i = 0; i < count; i += ROWS)
      for (int64_t c = 0; c < h; c += PANEL<T>)
        gather<T>(int(std::min<int64_t>(ROWS, count - i)), std::min(h - c, PANEL<T> + 0L), depth,
                  scores + i, width, values + c, run.v_token, sums + (first + i) * wide + c, wide);
  }

  // Asks for lines that are needed soon; nothing happens where they are near already.
  static void fetch(const T* x, int64_t tokens, int64_t stride, int64_t width) {
    constexpr int64_t LINE = 64 / sizeof(T);
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t c = 0; c < width; c += LINE) __builtin_prefetch(x + t * stride + c, 0, 2);
  }

  // Zeroes x[(j - hull.first) * width] for keys j that the query does not see.
  void clear(const Seen& seen, int64_t place, const Row<T>& row, Stretch hull, int64_t width,
             T* x) const {
    const auto wipe = [&](int64_t from, int64_t to) {
      for (int64_t j = from; j < to; j++) x[(j - hull.first) * width] = T(0);
    };
    int64_t reached = hull.first;
    for (const Stretch& part : {seen.sure[0], seen.sure[1], seen.timed}) {
      const int64_t low = std::clamp(part.first, reached, hull.last);
      const int64_t high = std::clamp(part.last, reached, hull.last);
      if (low >= high) continue;
      wipe(reached, low);
      reached = high;
    }
    wipe(reached, hull.last);
    const int64_t* times = row.times.data();
    for (int64_t j = std::max(seen.timed.first, hull.first);
         j < std::min(seen.timed.last, hull.last); j++)
      if (!(times[j] < times[place] || j == place)) wipe(j, j + 1);
  }

  // Adds rab to the scores of keys `hull` and queries [first, first + count) of the task.
  void add_bias(const Task& task, const Row<T>& row, int64_t first, int64_t count, Stretch hull,
                int64_t width, T* scores) const {
    const int64_t contextual = mask.contextual;
    for (int64_t i = 0; i < count; i++) {
      const int64_t place = row.cached + task.first + first + i;
      if (place < contextual) continue;
      T* x = scores + i;
      if (bias.position != nullptr) {
        const T* table = bias.position_of(task.head) + bias.reach;
        const int64_t here = std::min(place, row.end);
        for (int64_t j = std::max(hull.first, contextual); j < hull.last; j++)
          x[(j - hull.first) * width] +=
              table[std::clamp(std::min(j, row.end) - here, -bias.reach, bias.reach)];
      }
      if (bias.time != nullptr) {
        const T* table = bias.time_of(task.head);
        const bool own_time = mask.stable || place >= row.end;
        const int64_t now = row.times[own_time ? place : std::min(place + 1, row.end - 1)];
        for (int64_t j = std::max(hull.first, contextual); j < hull.last; j++)
          x[(j - hull.first) * width] += table[bias.bucket(now - row.times[j])];
      }
    }
  }

  // The key of target `i` (of the row's new tokens) itself.
  void own(const Task& task, const Row<T>& row, int64_t i, T* sum) const {
    const T* query = q.at(row.start + i, task.head);
    const T* key = k.at(row.start + i, task.head);
    const T* value = v.at(row.start + i, task.head);
    T score = 0;
    for (int64_t c = 0; c < d; c++) score += alpha * query[c] * key[c];
    const bool contextual = row.cached + i < mask.contextual;
    const T weight = silu<T>(score + own_bias<T>(bias, task.head, contextual));
    for (int64_t c = 0; c < h; c++) sum[c] += weight * value[c];
  }
};

// The cache of one layer, as `CachedKV`.
struct Cache {
  const at::Tensor &k, &v, &lengths;
  const std::optional<at::Tensor>&table, &times;
};

// Runs of the cached tokens of a row; pages that follow each other make one.
template <class T>
static void cached_runs(const Cache& cache, int64_t b, int64_t before, Row<T>& row) {
  const T *k = cache.k.const_data_ptr<T>(), *v = cache.v.const_data_ptr<T>();
  const auto ks = cache.k.strides(), vs = cache.v.strides();
  const int64_t* times = cache.times ? cache.times->const_data_ptr<int64_t>() : nullptr;
  if (!cache.table) {
    TORCH_CHECK_VALUE(row.cached >= 0 && before + row.cached <= cache.k.size(0), "row ", b,
                      ": lengths says ", row.cached, " cached tokens, but the cache holds ",
                      cache.k.size(0) - before, " for it");
    if (row.cached > 0)
      row.runs.push_back({0, row.cached, k + before * ks[0], v + before * vs[0], ks[0], ks[1],
                          vs[0], vs[1]});
    if (times != nullptr) row.times.assign(times + before, times + before + row.cached);
    return;
  }
  const int64_t size = cache.k.size(1), room = cache.table->size(1);
  const int64_t* pages = cache.table->const_data_ptr<int64_t>() + b * room;
  const bool even = ks[0] == size * ks[1] && vs[0] == size * vs[1];
  for (int64_t first = 0, at = 0; first < row.cached; first += size, at++) {
    const bool inside = at < room && pages[at] >= 0 && pages[at] < cache.k.size(0);
    TORCH_CHECK_VALUE(inside, "row ", b, ": lengths says ", row.cached,
                      " cached tokens, but the cache holds ", first, " for it");
    const int64_t last = std::min(first + size, row.cached), page = pages[at];
    if (at > 0 && even && page == pages[at - 1] + 1)
      row.runs.back().last = last;
    else
      row.runs.push_back(
          {first, last, k + page * ks[0], v + page * vs[0], ks[1], ks[2], vs[1], vs[2]});
    if (times != nullptr)
      row.times.insert(row.times.end(), times + page * size, times + page * size + last - first);
  }
}

template <class T>
static std::vector<Row<T>> rows_of(const Tokens<T>& k, const Tokens<T>& v,
                                   const at::Tensor& offsets, const Cache& cache,
                                   const std::optional<at::Tensor>& targets,
                                   const std::optional<at::Tensor>& times) {
  const int64_t* bounds = offsets.const_data_ptr<int64_t>();
  const int64_t* lengths = cache.lengths.const_data_ptr<int64_t>();
  std::vector<Row<T>> rows(cache.lengths.numel());
  int64_t before = 0;
  for (size_t b = 0; b < rows.size(); b++) {
    Row<T>& row = rows[b];
    const int64_t count = targets ? targets->const_data_ptr<int64_t>()[b] : 0;
    row.start = bounds[b], row.count = bounds[b + 1] - bounds[b], row.cached = lengths[b];
    TORCH_CHECK_VALUE(row.count >= 0 && row.start >= 0 && bounds[b + 1] <= k.count, "row ", b,
                      ": offsets must ascend and stay within the ", k.count, " new tokens");
    TORCH_CHECK_VALUE(count >= 0 && count <= row.count, "row ", b, ": ", count, " targets among ",
                      row.count, " new tokens; targets are never cached");
    row.end = row.length() - count;
    cached_runs<T>(cache, b, before, row);
    before += row.cached;
    if (row.count == 0) continue;
    row.runs.push_back({row.cached, row.length(), k.at(row.start, 0), v.at(row.start, 0), k.token,
                        k.head, v.token, v.head});
    if (times) {
      const int64_t* from = times->const_data_ptr<int64_t>() + row.start;
      row.times.insert(row.times.end(), from, from + row.count);
    }
  }
  return rows;
}

template <class T>
static std::vector<Task> cut(const std::vector<Row<T>>& rows, int64_t heads) {
  std::vector<Task> tasks;
  for (size_t b = 0; b < rows.size(); b++)
    for (int64_t first = 0; first < rows[b].count; first += BLOCK) {
      const int64_t last = std::min(first + BLOCK, rows[b].count);
      for (int64_t head = 0; head < heads; head++)
        tasks.push_back({int64_t(b), head, first, last, 0,
                         double(last - first) * (rows[b].cached + last)});
    }
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& a, const Task& b) { return a.cost > b.cost; });
  return tasks;
}

}  // namespace tzgen::cached
