// SPDX-License-Identifier: Apache-2.0
// STU attention, backward: scores are computed again from q and k; nothing of them was kept.
//
//     P = SiLU(S)   dP = G V^T / N   dS = dP SiLU'(S)      on what is seen
//     dV += P^T G / N   dQ = alpha dS K   dK += dS^T alpha Q   tables += dS
//
// Sums over queries and rows have one order: no atomics, the same bits in every run.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "hstu_task.h"

namespace tzgen {
namespace {

template <class T>
struct Scratch {
  Buffer<T> line, keys, key_columns, value_keys, queries, query_columns, grads, grad_columns;
  Buffer<T> scores, d_scores, d_queries, d_keys, d_values;
  Buffer<int32_t> buckets;
  std::vector<Seen> seen;
  std::vector<Stretch> hulls;
};

// What a task leaves for the sums over tasks.
template <class T>
struct Partial {
  std::vector<T> d_keys, d_values;  // of chunked rows
  std::vector<double> position, time;  // many small terms of both signs
};

template <class T>
struct Backward {
  const Problem& p;
  const Bias<T>& bias;
  View grad, q, k, v;
  Sink d_q, d_k, d_v;
  std::vector<Partial<T>>& partials;
  int64_t chunk;

  // The pointers of one task.
  struct Work {
    const Task& task;
    Scratch<T>& s;
    Partial<T>& partial;
    int64_t start, length, end, count, d, h, wide_d, wide_h, reach;
    T *line, *keys, *key_columns, *value_keys, *queries, *query_columns, *grads, *grad_columns;
    T *scores, *d_scores, *d_queries, *d_keys, *d_values;
    int32_t* buckets;
  };

  void operator()(const Task& task, size_t number, Scratch<T>& s) const {
    Work w = work_of(task, partials[number], s);
    pack(w);
    for (int64_t first = task.first; first < task.last; first += QUERIES)
      block(w, first, std::min(QUERIES, task.last - first));
    if (chunk_of(chunk, w.length) < w.length) {
      w.partial.d_keys.assign(w.d_keys, w.d_keys + w.count * w.wide_d);
      w.partial.d_values.assign(w.d_values, w.d_values + w.count * w.wide_h);
      return;
    }
    for (int64_t j = 0; j < w.count; j++) {
      d_k.write<T>(w.start + j, task.head, T(1), w.d_keys + j * w.wide_d);
      d_v.write<T>(w.start + j, task.head, T(1), w.d_values + j * w.wide_h);
    }
  }

  Work work_of(const Task& task, Partial<T>& partial, Scratch<T>& s) const {
    const int64_t d = p.attention_dim, h = p.hidden_dim;
    const int64_t wide_d = up(d, PANEL<T>), wide_h = up(h, PANEL<T>);
    const int64_t length = p.length(task.row), count = keys_of(p, task);
    const int64_t padded = up(count, PANEL<T>), reach = std::min(bias.reach, length - 1);
    s.seen.resize(QUERIES), s.hulls.resize(QUERIES);
    if (bias.position != nullptr) partial.position.assign(2 * reach + 1, 0.);
    if (bias.time != nullptr) partial.time.assign(bias.buckets, 0.);
    return {task, s, partial, p.offsets[task.row], length, p.history_end(task.row), count, d, h,
            wide_d, wide_h, reach,
            s.line.take(PANEL<T> * std::max(d, h)), s.keys.take(padded * d),
            s.key_columns.take(count * wide_d), s.value_keys.take(padded * h),
            s.queries.take(QUERIES * d), s.query_columns.take(QUERIES * wide_d),
            s.grads.take(QUERIES * h), s.grad_columns.take(QUERIES * wide_h),
            s.scores.take(QUERIES * STRIDE), s.d_scores.take(QUERIES * STRIDE),
            s.d_queries.take(QUERIES * wide_d), s.d_keys.take(count * wide_d),
            s.d_values.take(count * wide_h),
            bias.time == nullptr ? nullptr : s.buckets.take(QUERIES * STRIDE)};
  }

  void pack(const Work& w) const {
    const int64_t head = w.task.head;
    for (const View* x : {&k, &v}) x->fetch(w.start, head, w.count);
    for (const View* x : {&q, &grad})
      x->fetch(w.start + w.task.first, head, w.task.last - w.task.first);
    pack_keys<T>(k, w.start, head, w.count, w.line, w.keys, w.key_columns);
    pack_keys<T>(v, w.start, head, w.count, w.line, w.value_keys);
    std::fill(w.d_keys, w.d_keys + w.count * w.wide_d, T(0));
    std::fill(w.d_values, w.d_values + w.count * w.wide_h, T(0));
  }

  void block(const Work& w, int64_t first, int64_t some) const {
    const int64_t head = w.task.head;
    for (int64_t i = 0; i < some; i++) {
      w.s.seen[i] = seen_by(first + i, w.length, w.end, p.mask);
      T* query = w.queries + i * w.d;
      q.read<T>(w.start + first + i, head, T(p.alpha), query);
      pack_columns<T>(query, w.d, i, QUERIES, w.query_columns);
      T* out = w.grads + i * w.h;
      grad.read<T>(w.start + first + i, head, T(1 / p.divisor), out);
      pack_columns<T>(out, w.h, i, QUERIES, w.grad_columns);
    }
    std::fill(w.d_queries, w.d_queries + some * w.wide_d, T(0));
    const Spans spans = spans_of(w.s.seen.data(), some, PANEL<T>);
    for (int s = 0; s < spans.count; s++)
      for (int64_t low = spans.at[s].first; low < spans.at[s].last; low += KEYS) {
        const int64_t high = std::min(low + KEYS, spans.at[s].last);
        query_side(w, first, some, low, high);
        key_side(w, some, low, std::min(high, w.count));
      }
    for (int64_t i = std::max(first, w.end); i < first + some; i++)
      if (needs_own(w.s.seen[i - first], i, w.end)) own(w, i, i - first);
    for (int64_t i = 0; i < some; i++)
      d_q.write<T>(w.start + first + i, head, T(p.alpha), w.d_queries + i * w.wide_d);
  }

  // Scores and their gradients of a tile, and d_queries; what is not seen becomes zero.
  void query_side(const Work& w, int64_t first, int64_t some, int64_t low, int64_t high) const {
    for (int64_t r = 0; r < some; r += ROWS) {
      const int rows = int(std::min<int64_t>(ROWS, some - r));
      Stretch hull = {high, low};
      for (int i = 0; i < rows; i++) {
        const Stretch one = hull_in(w.s.seen[r + i], low, high);
        hull = {std::min(hull.first, one.first), std::max(hull.last, one.last)};
      }
      w.s.hulls[r / ROWS] = hull;
      T *x = w.scores + r * STRIDE, *dx = w.d_scores + r * STRIDE;
      if (hull.first >= hull.last) {
        for (int i = 0; i < rows; i++) {
          std::fill(x + i * STRIDE, x + i * STRIDE + (high - low), T(0));
          std::fill(dx + i * STRIDE, dx + i * STRIDE + (high - low), T(0));
        }
        continue;
      }
      for (int64_t j = hull.first / PANEL<T> * PANEL<T>; j < hull.last; j += PANEL<T>) {
        multiply<T, false>(rows, hull.last - j, w.d, w.queries + r * w.d, w.d, w.keys + j * w.d,
                           x + (j - low), STRIDE, false);
        multiply<T, false>(rows, hull.last - j, w.h, w.grads + r * w.h, w.h,
                           w.value_keys + j * w.h, dx + (j - low), STRIDE, false);
      }
      for (int i = 0; i < rows; i++)
        weigh(w, first + r + i, w.s.seen[r + i], low, high, hull, x + i * STRIDE,
              dx + i * STRIDE, w.buckets == nullptr ? nullptr : w.buckets + (r + i) * STRIDE);
      for (int64_t c = 0; c < w.d; c += PANEL<T>)
        multiply<T, false>(rows, w.d - c, hull.last - hull.first, dx + (hull.first - low), STRIDE,
                           w.key_columns + c * w.count + hull.first * PANEL<T>,
                           w.d_queries + r * w.wide_d + c, w.wide_d, true);
    }
  }

  // d_keys and d_values of keys [low, high) from the tile's queries.
  void key_side(const Work& w, int64_t some, int64_t low, int64_t high) const {
    for (int64_t j = low; j < high; j += ROWS) {
      const int keys = int(std::min<int64_t>(ROWS, high - j));
      int64_t from = some, to = 0;  // queries that see any of them
      for (int64_t r = 0; r < some; r += ROWS) {
        const Stretch hull = w.s.hulls[r / ROWS];
        if (hull.first < j + keys && hull.last > j && hull.first < hull.last) {
          from = std::min(from, r);
          to = std::min<int64_t>(some, r + ROWS);
        }
      }
      if (from >= to) continue;
      const T* x = w.scores + from * STRIDE + (j - low);
      const T* dx = w.d_scores + from * STRIDE + (j - low);
      for (int64_t c = 0; c < w.h; c += PANEL<T>)
        multiply<T, true>(keys, w.h - c, to - from, x, STRIDE,
                          w.grad_columns + c * QUERIES + from * PANEL<T>,
                          w.d_values + j * w.wide_h + c, w.wide_h, true);
      for (int64_t c = 0; c < w.d; c += PANEL<T>)
        multiply<T, true>(keys, w.d - c, to - from, dx, STRIDE,
                          w.query_columns + c * QUERIES + from * PANEL<T>,
                          w.d_keys + j * w.wide_d + c, w.wide_d, true);
    }
  }

  void weigh(const Work& w, int64_t i, const Seen& seen, int64_t low, int64_t high, Stretch hull,
             T* x, T* dx, int32_t* buckets) const {
    T *at = x + (hull.first - low), *d_at = dx + (hull.first - low);
    const bool biased = bias.position != nullptr || bias.time != nullptr;
    const BiasQuery query(p, w.task.row, i, bias.reach);
    if (biased)
      add_bias<T>(query, bias, w.task.head, hull.first, hull.first, hull.last, at, buckets);
    silu_backward_inplace<T>(at, d_at, hull.last - hull.first);
    const int64_t* times = p.times == nullptr ? nullptr : p.times + w.start;
    clear_unseen<T>(seen, i, times, hull.first, hull.last, at);
    clear_unseen<T>(seen, i, times, hull.first, hull.last, d_at);
    if (biased && !query.none()) table_gradients(w, query, hull, d_at, buckets);
    for (T* line : {x, dx}) {
      std::fill(line, line + (hull.first - low), T(0));
      std::fill(line + (hull.last - low), line + (high - low), T(0));
    }
  }

  void table_gradients(const Work& w, const BiasQuery& query, Stretch hull, const T* d,
                       const int32_t* buckets) const {
    const int64_t low = std::max(hull.first, query.contextual);
    if (bias.position != nullptr) {
      double* sums = w.partial.position.data();
      const int64_t shift = bias.reach - w.reach;  // columns that no pair of the row can reach
      for (int64_t j = low; j < hull.last; j++) sums[query.column(j) - shift] += d[j - hull.first];
    }
    if (bias.time != nullptr) {
      double* sums = w.partial.time.data();
      for (int64_t j = low; j < hull.last; j++)
        sums[buckets[j - hull.first]] += d[j - hull.first];
    }
  }

  // A target and its own key, which nobody else sees.
  void own(const Work& w, int64_t i, int64_t r) const {
    const int64_t head = w.task.head, at = w.start + i;
    const T *query = w.queries + r * w.d, *out = w.grads + r * w.h;
    k.read<T>(at, head, T(1), w.line);
    T score = own_bias<T>(bias, head, i < p.mask.contextual), d_score = 0;
    for (int64_t c = 0; c < w.d; c++) score += query[c] * w.line[c];
    const T sigma = 1 / (1 + std::exp(-score)), weight = score * sigma;
    v.read<T>(at, head, T(1), w.line);
    for (int64_t c = 0; c < w.h; c++) d_score += out[c] * w.line[c];
    d_score *= sigma + weight * (1 - sigma);
    k.read<T>(at, head, T(1), w.line);
    for (int64_t c = 0; c < w.d; c++) w.d_queries[r * w.wide_d + c] += d_score * w.line[c];
    if (i < w.count) {  // rows shorter than the contextual prefix
      for (int64_t c = 0; c < w.d; c++) w.d_keys[i * w.wide_d + c] += d_score * query[c];
      for (int64_t c = 0; c < w.h; c++) w.d_values[i * w.wide_h + c] += weight * out[c];
    } else {
      d_k.write<T>(at, head, d_score, query);
      d_v.write<T>(at, head, weight, out);
    }
    if (i < p.mask.contextual) return;
    if (bias.position != nullptr) w.partial.position[w.reach] += d_score;
    if (bias.time != nullptr) w.partial.time[0] += d_score;
  }
};

// d_k and d_v of chunked rows: the sum over their chunks, in order.
template <class T>
void sum_chunks(const Problem& p, const std::vector<Task>& tasks,
                const std::vector<Partial<T>>& partials, const Sink& d_k, const Sink& d_v) {
  const auto chunked = [](const Partial<T>& one) { return !one.d_keys.empty(); };
  if (std::none_of(partials.begin(), partials.end(), chunked)) return;
  std::vector<std::vector<const Partial<T>*>> chunks(p.rows * p.heads);
  for (size_t t = 0; t < tasks.size(); t++) {
    auto& one = chunks[tasks[t].row * p.heads + tasks[t].head];
    if (!chunked(partials[t])) continue;
    if (int64_t(one.size()) <= tasks[t].chunk) one.resize(tasks[t].chunk + 1);
    one[tasks[t].chunk] = &partials[t];
  }
  at::parallel_for(0, chunks.size(), 1, [&](int64_t begin, int64_t stop) {
    for (int64_t at = begin; at < stop; at++) {
      const int64_t row = at / p.heads, head = at % p.heads;
      for (const bool keys : {true, false}) {
        const int64_t wide = up(keys ? p.attention_dim : p.hidden_dim, PANEL<T>);
        std::vector<T> sum;
        for (const Partial<T>* one : chunks[at]) {
          const std::vector<T>& part = keys ? one->d_keys : one->d_values;
          sum.resize(std::max(sum.size(), part.size()), T(0));
          for (size_t e = 0; e < part.size(); e++) sum[e] += part[e];
        }
        for (int64_t j = 0; j * wide < int64_t(sum.size()); j++)
          (keys ? d_k : d_v).template write<T>(p.offsets[row] + j, head, T(1), &sum[j * wide]);
      }
    }
  });
}

// Table gradients: the sum over tasks in the order of rows, chunks and heads.
template <class T>
void sum_tables(const Problem& p, const Bias<T>& bias, const std::vector<Task>& tasks,
                const std::vector<Partial<T>>& partials, double* position, double* time) {
  std::vector<size_t> order(tasks.size());
  std::iota(order.begin(), order.end(), size_t(0));
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const Task &x = tasks[a], &y = tasks[b];
    return std::tie(x.row, x.chunk, x.head) < std::tie(y.row, y.chunk, y.head);
  });
  for (const size_t t : order) {
    const std::vector<double>& by_place = partials[t].position;
    const int64_t head = tasks[t].head, reach = (int64_t(by_place.size()) - 1) / 2;
    if (!by_place.empty()) {
      double* to = position + (bias.position_heads > 1 ? head * (2 * bias.reach + 1) : 0);
      for (size_t c = 0; c < by_place.size(); c++) to[bias.reach - reach + c] += by_place[c];
    }
    double* to = time + (bias.time_heads > 1 ? head * bias.buckets : 0);
    for (size_t c = 0; c < partials[t].time.size(); c++) to[c] += partials[t].time[c];
  }
}

template <class T>
void backward_in(const Problem& p, const Bias<T>& bias, const at::Tensor& grad,
                 const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                 int64_t chunk, const std::array<at::Tensor, 5>& out) {
  const std::vector<Task> tasks = tasks_of(p, chunk);
  std::vector<Partial<T>> partials(tasks.size());
  const Backward<T> work{p,       bias,         View(grad),   View(q),      View(k),
                         View(v), Sink(out[0]), Sink(out[1]), Sink(out[2]), partials, chunk};
  run_tasks<Scratch<T>>(tasks, work);
  sum_chunks<T>(p, tasks, partials, work.d_k, work.d_v);
  sum_tables<T>(p, bias, tasks, partials, out[3].mutable_data_ptr<double>(),
                out[4].mutable_data_ptr<double>());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& offsets, const std::optional<at::Tensor>& targets,
    const std::optional<at::Tensor>& times, const std::optional<at::Tensor>& position,
    const std::optional<at::Tensor>& time, const std::optional<at::Tensor>& steps,
    const std::optional<at::Tensor>& cells, double alpha, double divisor,
    at::IntArrayRef mask, int64_t chunk) {
  const Problem p = problem_of(q, v, offsets, targets, times, alpha, divisor, mask);
  const bool wide = q.scalar_type() == at::kDouble;
  const auto table = [&](const std::optional<at::Tensor>& like) {
    const std::vector<int64_t> shape = like ? like->sizes().vec() : std::vector<int64_t>{0, 0};
    return at::zeros(shape, q.options().dtype(at::kDouble));
  };
  const auto fresh = [](const at::Tensor& x) { return at::empty(x.sizes(), x.options()); };
  const std::array<at::Tensor, 5> out = {fresh(q), fresh(k), fresh(v), table(position),
                                         table(time)};
  if (wide)
    backward_in<double>(p, bias_of<double>(position, time, steps, cells), grad, q, k, v, chunk, out);
  else
    backward_in<float>(p, bias_of<float>(position, time, steps, cells), grad, q, k, v, chunk, out);
  const at::ScalarType type = wide ? at::kDouble : at::kFloat;
  return {out[0], out[1], out[2], out[3].to(type), out[4].to(type)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(tzgen_native, m) {
  m.def(
      "hstu_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor offsets, "
      "Tensor? num_targets, Tensor? timestamps, Tensor? position, Tensor? time, Tensor? steps, "
      "Tensor? cells, float alpha, float divisor, int[] mask, int chunk=8192) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
      &backward);
}

}  // namespace tzgen
