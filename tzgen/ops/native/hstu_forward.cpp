// SPDX-License-Identifier: Apache-2.0
// STU attention, forward: O_i = sum_j SiLU(alpha q_i . k_j + rab_ij) v_j / N over what i sees.
#include <ATen/ops/empty.h>

#include "hstu_task.h"

namespace tzgen {
namespace {

template <class T>
struct Scratch {
  Buffer<T> line, keys, values, queries, scores, sums;
  std::vector<Seen> seen;
};

template <class T>
struct Forward {
  const Problem& p;
  const Bias<T>& bias;
  View q, k, v;
  Sink out;

  void operator()(const Task& task, size_t, Scratch<T>& scratch) const {
    const int64_t start = p.offsets[task.row], length = p.length(task.row);
    const int64_t end = p.history_end(task.row), d = p.attention_dim, h = p.hidden_dim;
    const int64_t wide = up(h, PANEL<T>);
    T* line = scratch.line.take(PANEL<T> * std::max(d, h));
    T* queries = scratch.queries.take(QUERIES * d);
    T* scores = scratch.scores.take(QUERIES * STRIDE);
    T* sums = scratch.sums.take(QUERIES * wide);
    scratch.seen.resize(QUERIES);
    const int64_t count = keys_of(p, task);
    T* keys = scratch.keys.take(up(count, PANEL<T>) * d);
    T* values = scratch.values.take(count * wide);
    k.fetch(start, task.head, count);
    v.fetch(start, task.head, count);
    q.fetch(start + task.first, task.head, task.last - task.first);
    pack_keys<T>(k, start, task.head, count, line, keys);
    for (int64_t j = 0; j < count; j++) {
      v.read<T>(start + j, task.head, T(1), line);
      pack_columns<T>(line, h, j, count, values);
    }
    for (int64_t first = task.first; first < task.last; first += QUERIES) {
      const int64_t some = std::min(QUERIES, task.last - first);
      for (int64_t i = 0; i < some; i++) {
        scratch.seen[i] = seen_by(first + i, length, end, p.mask);
        q.read<T>(start + first + i, task.head, T(p.alpha), queries + i * d);
      }
      std::fill(sums, sums + some * wide, T(0));
      const Spans spans = spans_of(scratch.seen.data(), some, PANEL<T>);
      for (int s = 0; s < spans.count; s++)
        for (int64_t at = spans.at[s].first; at < spans.at[s].last; at += KEYS)
          tile_of(task, first, some, at, std::min(at + KEYS, spans.at[s].last), count,
                  scratch.seen.data(), queries, keys, values, scores, sums);
      for (int64_t i = std::max(first, end); i < first + some; i++)
        if (needs_own(scratch.seen[i - first], i, end))
          own(task, i, queries + (i - first) * d, line, sums + (i - first) * wide);
      for (int64_t i = 0; i < some; i++)
        out.write<T>(start + first + i, task.head, T(1 / p.divisor), sums + i * wide);
    }
  }

  void tile_of(const Task& task, int64_t first, int64_t some, int64_t low, int64_t high,
               int64_t count, const Seen* seen, const T* queries, const T* keys, const T* values,
               T* scores, T* sums) const {
    const int64_t d = p.attention_dim, h = p.hidden_dim, wide = up(h, PANEL<T>);
    for (int64_t r = 0; r < some; r += ROWS) {
      const int rows = int(std::min<int64_t>(ROWS, some - r));
      Stretch hull = {high, low};
      for (int i = 0; i < rows; i++) {
        const Stretch one = hull_in(seen[r + i], low, high);
        hull = {std::min(hull.first, one.first), std::max(hull.last, one.last)};
      }
      if (hull.first >= hull.last) continue;
      const int64_t from = hull.first / PANEL<T> * PANEL<T>;
      T* x = scores + r * STRIDE;
      for (int64_t j = from; j < hull.last; j += PANEL<T>)
        multiply<T, false>(rows, hull.last - j, d, queries + r * d, d, keys + j * d,
                           x + (j - low), STRIDE, false);
      for (int i = 0; i < rows; i++)
        weigh(task, first + r + i, seen[r + i], low, hull, x + i * STRIDE);
      for (int64_t c = 0; c < h; c += PANEL<T>)
        multiply<T, false>(rows, h - c, hull.last - hull.first, x + (hull.first - low), STRIDE,
                           values + c * count + hull.first * PANEL<T>, sums + r * wide + c, wide,
                           true);
    }
  }

  // Scores of query i on keys of `hull` -> weights, zero where it does not see.
  void weigh(const Task& task, int64_t i, const Seen& seen, int64_t low, Stretch hull,
             T* x) const {
    T* at = x + (hull.first - low);
    if (bias.position != nullptr || bias.time != nullptr)
      add_bias<T>(BiasQuery(p, task.row, i, bias.reach), bias, task.head, hull.first, hull.first,
                  hull.last, at, nullptr);
    silu_inplace<T>(at, hull.last - hull.first);
    const int64_t* times = p.times == nullptr ? nullptr : p.times + p.offsets[task.row];
    clear_unseen<T>(seen, i, times, hull.first, hull.last, at);
  }

  // A target's own key.
  void own(const Task& task, int64_t i, const T* query, T* line, T* sum) const {
    const int64_t at = p.offsets[task.row] + i;
    k.read<T>(at, task.head, T(1), line);
    T score = own_bias<T>(bias, task.head, i < p.mask.contextual);
    for (int64_t c = 0; c < p.attention_dim; c++) score += query[c] * line[c];
    v.read<T>(at, task.head, T(1), line);
    const T weight = silu<T>(score);
    for (int64_t c = 0; c < p.hidden_dim; c++) sum[c] += weight * line[c];
  }
};

template <class T>
void forward_in(const Problem& p, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                const std::optional<at::Tensor>& position, const std::optional<at::Tensor>& time,
                const std::optional<at::Tensor>& steps, const std::optional<at::Tensor>& cells,
                int64_t chunk, const at::Tensor& out) {
  const Bias<T> bias = bias_of<T>(position, time, steps, cells);
  const Forward<T> work{p, bias, View(q), View(k), View(v), Sink(out)};
  run_tasks<Scratch<T>>(tasks_of(p, chunk), work);
}

at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                   const at::Tensor& offsets, const std::optional<at::Tensor>& targets,
                   const std::optional<at::Tensor>& times,
                   const std::optional<at::Tensor>& position,
                   const std::optional<at::Tensor>& time, const std::optional<at::Tensor>& steps,
                   const std::optional<at::Tensor>& cells, double alpha, double divisor,
                   at::IntArrayRef mask, int64_t chunk) {
  const Problem p = problem_of(q, v, offsets, targets, times, alpha, divisor, mask);
  at::Tensor out = at::empty(v.sizes(), v.options());
  if (q.scalar_type() == at::kDouble)
    forward_in<double>(p, q, k, v, position, time, steps, cells, chunk, out);
  else
    forward_in<float>(p, q, k, v, position, time, steps, cells, chunk, out);
  return out;
}

// The mask of one row as the kernels read it, bool [length, length]: for tests.
at::Tensor dense_mask(int64_t length, int64_t targets, const std::optional<at::Tensor>& times,
                      at::IntArrayRef fields) {
  const Mask mask = mask_of(fields);
  at::Tensor out = at::empty({length, length}, at::kByte);
  uint8_t* at = out.mutable_data_ptr<uint8_t>();
  const int64_t* when = times ? times->const_data_ptr<int64_t>() : nullptr;
  std::fill(at, at + length * length, uint8_t(1));
  for (int64_t i = 0; i < length; i++) {
    const Seen seen = seen_by(i, length, length - targets, mask);
    clear_unseen<uint8_t>(seen, i, when, 0, length, at + i * length);
    if (i >= length - targets) at[i * length + i] = 1;
  }
  return out.to(at::kBool);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(tzgen_native, m) {
  m.def(
      "hstu_attention_forward(Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor? num_targets, "
      "Tensor? timestamps, Tensor? position, Tensor? time, Tensor? steps, Tensor? cells, "
      "float alpha, float divisor, int[] mask, int chunk=1152) -> Tensor",
      &forward);
  m.def("hstu_attention_mask(int length, int num_targets, Tensor? timestamps, int[] mask) -> Tensor",
        &dense_mask);
}

}  // namespace tzgen
