// SPDX-License-Identifier: Apache-2.0
// What forward and backward of STU attention share: tasks, packed operands, tiles, bias.
//
// A task is (row, head, chunk of queries). It packs what it needs of q, k, v into its thread's
// scratch, so that any strides will do and equal rows give equal bits wherever they lie, then walks
// its queries in blocks, and each block's visible keys in tiles. Cuts depend on the row alone.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <atomic>
#include <memory>
#include <numeric>
#include <vector>

#include "gemm.h"
#include "hstu_mask.h"

namespace tzgen {

constexpr int64_t QUERIES = 96;     // of a block: a multiple of 4, 6 and 8 rows
constexpr int64_t KEYS = 256;       // of a tile: a multiple of every PANEL
constexpr int64_t STRIDE = KEYS + 16;  // of a tile's rows: no power of two, for the cache's sake
constexpr int64_t MAX_CHUNKS = 8;   // of a row: partial gradients stay O(tokens)

constexpr double THREAD_COST = 1 << 16;  // of tasks that a thread is woken for: about 0.1 ms
constexpr int64_t AHEAD = 16;       // tokens that are fetched before they are read

static inline int64_t up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

struct Task {
  int64_t row, head, first, last;  // queries [first, last) of the row
  int64_t chunk;                   // which of the row's
  double cost;
};

// An [L, H, width] tensor of any dtype and strides.
struct View {
  const void* data;
  at::ScalarType type;
  int64_t token, head, column, width, bytes;
  explicit View(const at::Tensor& x)
      : data(x.const_data_ptr()), type(x.scalar_type()), token(x.stride(0)), head(x.stride(1)),
        column(x.stride(2)), width(x.size(2)), bytes(x.element_size()) {}

  // Asks for the first tokens that a task reads, all at once; `read` asks for the ones after them.
  void fetch(int64_t at, int64_t h, int64_t count) const {
    for (int64_t t = 0; t < std::min(count, AHEAD); t++)
      for (int64_t c = 0; c < width; c += 64 / bytes)
        __builtin_prefetch(static_cast<const char*>(data) +
                           ((at + t) * token + h * head + c * column) * bytes);
  }

  template <class S, class T>
  void copy(int64_t at, int64_t h, T scale, T* out) const {
    const S* from = static_cast<const S*>(data) + at * token + h * head;
    // tokens of a head lie apart, too far for the processor to guess the next ones
    for (int64_t c = 0; c < width; c += 64 / int64_t(sizeof(S)))
      __builtin_prefetch(from + AHEAD * token + c * column);
    if (column == 1)
      for (int64_t c = 0; c < width; c++) out[c] = scale * static_cast<T>(from[c]);
    else
      for (int64_t c = 0; c < width; c++) out[c] = scale * static_cast<T>(from[c * column]);
  }
  // One token of one head, times `scale`, to out[0, width).
  template <class T>
  void read(int64_t at, int64_t h, T scale, T* out) const {
    switch (type) {
      case at::kDouble: return copy<double>(at, h, scale, out);
      case at::kBFloat16: return copy<at::BFloat16>(at, h, scale, out);
      case at::kHalf: return copy<at::Half>(at, h, scale, out);
      default: return copy<float>(at, h, scale, out);
    }
  }
};

// A contiguous [L, H, width] result.
struct Sink {
  void* data;
  at::ScalarType type;
  int64_t heads, width;
  explicit Sink(const at::Tensor& x)
      : data(x.mutable_data_ptr()), type(x.scalar_type()), heads(x.size(1)), width(x.size(2)) {}
  template <class T>
  Sink(T* to, int64_t heads_, int64_t width_)
      : data(to), type(c10::CppTypeToScalarType<T>::value), heads(heads_), width(width_) {}

  template <class S, class T>
  void copy(int64_t at, int64_t h, T scale, const T* from) const {
    S* to = static_cast<S*>(data) + (at * heads + h) * width;
    for (int64_t c = 0; c < width; c += 64 / int64_t(sizeof(S)))
      __builtin_prefetch(to + AHEAD * heads * width + c, 1);
    for (int64_t c = 0; c < width; c++) to[c] = static_cast<S>(scale * from[c]);
  }
  template <class T>
  void write(int64_t at, int64_t h, T scale, const T* from) const {
    switch (type) {
      case at::kDouble: return copy<double>(at, h, scale, from);
      case at::kBFloat16: return copy<at::BFloat16>(at, h, scale, from);
      case at::kHalf: return copy<at::Half>(at, h, scale, from);
      default: return copy<float>(at, h, scale, from);
    }
  }
};

// The relative bias tables in the dtype of the arithmetic; see bias.py.
template <class T>
struct Bias {
  const T* position = nullptr;  // [1 or H, 2 * reach + 1]
  const T* time = nullptr;      // [1 or H, buckets]
  const float* steps = nullptr;   // [buckets]: least |dt| of each bucket, then infinity
  const int32_t* cells = nullptr; // bucket of the least number of each float cell
  int64_t reach = 0, buckets = 0, position_heads = 1, time_heads = 1;

  const T* position_of(int64_t h) const {
    return position + (position_heads > 1 ? h * (2 * reach + 1) : 0);
  }
  const T* time_of(int64_t h) const { return time + (time_heads > 1 ? h * buckets : 0); }
  int32_t bucket(int64_t dt) const {
    const float size = static_cast<float>(std::max<int64_t>(dt < 0 ? -dt : dt, 1));
    int32_t bits;
    std::memcpy(&bits, &size, sizeof(bits));
    int32_t found = cells[(bits - 0x3f800000) >> 18];
    while (size >= steps[found + 1]) found++;
    return found;
  }
};

struct Problem {
  Mask mask;
  int64_t rows, heads, attention_dim, hidden_dim;
  const int64_t *offsets, *targets, *times;
  double alpha, divisor;

  int64_t length(int64_t row) const { return offsets[row + 1] - offsets[row]; }
  int64_t history_end(int64_t row) const {
    return length(row) - (targets == nullptr ? 0 : targets[row]);
  }
};

static inline Mask mask_of(at::IntArrayRef m) {
  TORCH_CHECK(m.size() == 9, "mask: expected the nine fields of MaskSpec, got ", m.size());
  return {m[0], m[1], m[5], m[6], m[7], m[8], m[2] != 0, m[3] != 0, m[4] != 0};
}

static inline Problem problem_of(const at::Tensor& q, const at::Tensor& v,
                                 const at::Tensor& offsets,
                                 const std::optional<at::Tensor>& targets,
                                 const std::optional<at::Tensor>& times, double alpha,
                                 double divisor, at::IntArrayRef mask) {
  Problem p;
  p.mask = mask_of(mask);
  p.rows = offsets.numel() - 1, p.heads = q.size(1);
  p.attention_dim = q.size(2), p.hidden_dim = v.size(2);
  p.offsets = offsets.const_data_ptr<int64_t>();
  p.targets = targets ? targets->const_data_ptr<int64_t>() : nullptr;
  p.times = times ? times->const_data_ptr<int64_t>() : nullptr;
  p.alpha = alpha, p.divisor = divisor;
  TORCH_CHECK(offsets.is_contiguous() && (!targets || targets->is_contiguous()) &&
                  (!times || times->is_contiguous()),
              "offsets, num_targets and timestamps must be contiguous");
  TORCH_CHECK(p.rows <= 0 || p.offsets[p.rows] <= q.size(0), "offsets reach past the tokens");
  for (int64_t row = 0; row < p.rows; row++)
    TORCH_CHECK(p.length(row) >= 0 && p.history_end(row) >= 0 &&
                    p.history_end(row) <= p.length(row),
                "row ", row, ": offsets must ascend, and num_targets lie in [0, length]");
  return p;
}

template <class T>
static inline Bias<T> bias_of(const std::optional<at::Tensor>& position,
                              const std::optional<at::Tensor>& time,
                              const std::optional<at::Tensor>& steps,
                              const std::optional<at::Tensor>& cells) {
  Bias<T> b;
  if (position) {
    b.position = position->const_data_ptr<T>();
    b.reach = (position->size(1) - 1) / 2, b.position_heads = position->size(0);
  }
  if (time) {
    b.time = time->const_data_ptr<T>();
    b.buckets = time->size(1), b.time_heads = time->size(0);
    b.steps = steps->const_data_ptr<float>(), b.cells = cells->const_data_ptr<int32_t>();
  }
  return b;
}

// Queries of a task: `chunk`, or more where the row would be cut too often.
static inline int64_t chunk_of(int64_t chunk, int64_t length) {
  return up(std::max(chunk, (length + MAX_CHUNKS - 1) / MAX_CHUNKS), QUERIES);
}

// All tasks, heaviest first.
static inline std::vector<Task> tasks_of(const Problem& p, int64_t chunk_size) {
  std::vector<Task> tasks;
  for (int64_t row = 0; row < p.rows; row++) {
    const int64_t length = p.length(row), step = chunk_of(chunk_size, length);
    for (int64_t first = 0, chunk = 0; first < length; first += step, chunk++) {
      const int64_t last = std::min(first + step, length);
      for (int64_t head = 0; head < p.heads; head++)
        tasks.push_back({row, head, first, last, chunk, double(last - first) * (first + last + 64)});
    }
  }
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& a, const Task& b) { return a.cost > b.cost; });
  return tasks;
}

// How many leading keys of the row its queries may see, but for a target's own.
static inline int64_t keys_of(const Problem& p, const Task& task) {
  const int64_t end = p.history_end(task.row);
  const bool ahead = p.mask.by_time || task.first < p.mask.contextual;
  return std::max(ahead ? end : std::min(end, task.last),
                  std::min(p.mask.contextual, p.length(task.row)));
}

// Calls work(task, its number, scratch) for every task; each thread takes the next and has a scratch
// of its own. Little work stays on the calling thread: waking another one costs more.
template <class Scratch, class Work>
static inline void run_tasks(const std::vector<Task>& tasks, const Work& work) {
  std::atomic<size_t> next{0};
  double cost = 0;
  for (const Task& task : tasks) cost += task.cost;
  const int64_t worth = 1 + int64_t(cost / THREAD_COST);
  const int64_t threads = std::min<int64_t>({at::get_num_threads(), int64_t(tasks.size()), worth});
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t stop) {
    for (int64_t thread = begin; thread < stop; thread++) {
      thread_local Scratch scratch;  // kept: fresh pages cost more than small rows do
      for (size_t at; (at = next++) < tasks.size();) work(tasks[at], at, scratch);
    }
  });
}

// Memory that grows and is never filled: callers write before they read.
template <class T>
class Buffer {
 public:
  T* take(int64_t count) {
    if (count > size_) {
      data_.reset(new (std::align_val_t(64)) T[count]);
      size_ = count;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(T* at) const { ::operator delete[](at, std::align_val_t(64)); }
  };
  std::unique_ptr<T[], Free> data_;
  int64_t size_ = 0;
};

// Lines [0, count) of a [., width] array as panels of columns, [width / PANEL][stride][PANEL].
template <class T>
static inline void pack_columns(const T* line, int64_t width, int64_t j, int64_t stride, T* out) {
  for (int64_t first = 0; first < width; first += PANEL<T>, out += stride * PANEL<T>) {
    const int64_t some = std::min<int64_t>(PANEL<T>, width - first);
    std::copy(line + first, line + first + some, out + j * PANEL<T>);
    std::fill(out + j * PANEL<T> + some, out + (j + 1) * PANEL<T>, T(0));
  }
}

// Tokens [0, count) of a row as panels of keys, [count / PANEL][width][PANEL]; the rest is zero.
// `lines` has room for PANEL tokens; `columns`, where given, gets the same by pack_columns.
template <class T>
static inline void pack_keys(const View& x, int64_t start, int64_t h, int64_t count, T* lines,
                             T* out, T* columns = nullptr) {
  const int64_t width = x.width;
  for (int64_t first = 0; first < count; first += PANEL<T>, out += width * PANEL<T>) {
    const int64_t some = std::min<int64_t>(PANEL<T>, count - first);
    for (int64_t j = 0; j < some; j++) x.read<T>(start + first + j, h, T(1), lines + j * width);
    for (int64_t j = 0; columns != nullptr && j < some; j++)
      pack_columns<T>(lines + j * width, width, first + j, count, columns);
    std::fill(lines + some * width, lines + PANEL<T> * width, T(0));
    for (int64_t c = 0; c < width; c++)
#pragma GCC unroll 32
      for (int64_t j = 0; j < PANEL<T>; j++) out[c * PANEL<T> + j] = lines[j * width + c];
  }
}

// A block: queries [first, last) of a row; and the stretches of keys that any of them sees.
struct Spans {
  Stretch at[3];
  int count = 0;

  // Ascending stretches, widened to whole panels of keys and joined where they touch.
  void add(int64_t first, int64_t last, int64_t panel) {
    if (first >= last) return;
    first = first / panel * panel, last = up(last, panel);
    if (count > 0 && first <= at[count - 1].last)
      at[count - 1].last = std::max(at[count - 1].last, last);
    else
      at[count++] = {first, last};
  }
};

static inline Spans spans_of(const Seen* seen, int64_t count, int64_t panel) {
  Stretch hull[3] = {{INT64_MAX, 0}, {INT64_MAX, 0}, {INT64_MAX, 0}};
  for (int64_t i = 0; i < count; i++) {
    const Stretch parts[3] = {seen[i].sure[0], seen[i].sure[1], seen[i].timed};
    for (int part = 0; part < 3; part++)
      if (parts[part].first < parts[part].last) {
        hull[part].first = std::min(hull[part].first, parts[part].first);
        hull[part].last = std::max(hull[part].last, parts[part].last);
      }
  }
  Spans spans;
  std::sort(hull, hull + 3, [](auto a, auto b) { return a.first < b.first; });
  for (const Stretch& one : hull) spans.add(one.first, one.last, panel);
  return spans;
}

// Hull of what a query sees of keys [first, last); empty where it sees none.
static inline Stretch hull_in(const Seen& seen, int64_t first, int64_t last) {
  Stretch hull = {last, first};
  for (const Stretch& part : {seen.sure[0], seen.sure[1], seen.timed}) {
    const int64_t low = std::max(part.first, first), high = std::min(part.last, last);
    if (low < high) hull = {std::min(hull.first, low), std::max(hull.last, high)};
  }
  return hull;
}

// Zeroes x[j - first] for keys j of [first, last) that the query does not see.
template <class T>
static inline void clear_unseen(const Seen& seen, int64_t i, const int64_t* times, int64_t first,
                                int64_t last, T* x) {
  int64_t at = first;
  for (const Stretch& part : {seen.sure[0], seen.sure[1], seen.timed}) {
    const int64_t low = std::clamp(part.first, at, last), high = std::clamp(part.last, at, last);
    if (low >= high) continue;
    std::fill(x + (at - first), x + (low - first), T(0));
    at = high;
  }
  std::fill(x + (at - first), x + (last - first), T(0));
  const int64_t low = std::max(seen.timed.first, first), high = std::min(seen.timed.last, last);
  for (int64_t j = low; j < high; j++)
    if (!(times[j] < times[i] || j == i)) x[j - first] = T(0);
}

// Columns of the bias tables for one query: `take(j, column of position or -1, bucket or -1)`.
struct BiasQuery {
  int64_t i, end, contextual, reach, query_time;
  const int64_t* times;

  BiasQuery(const Problem& p, int64_t row, int64_t i_, int64_t reach_)
      : i(i_), end(p.history_end(row)), contextual(p.mask.contextual), reach(reach_),
        query_time(0), times(p.times == nullptr ? nullptr : p.times + p.offsets[row]) {
    if (times == nullptr) return;
    const int64_t place = p.mask.stable || i >= end ? i : std::min(i + 1, end - 1);
    query_time = times[place];
  }
  bool none() const { return i < contextual; }
  int64_t column(int64_t j) const {
    const int64_t distance = std::min(j, end) - std::min(i, end);
    return std::clamp(distance, -reach, reach) + reach;
  }
};

// Adds the bias of query `b.i` to scores x[j - first], j in [low, high); keeps buckets of time.
template <class T>
static inline void add_bias(const BiasQuery& b, const Bias<T>& tables, int64_t h, int64_t first,
                            int64_t low, int64_t high, T* x, int32_t* buckets) {
  if (b.none()) return;
  low = std::max(low, b.contextual);
  if (tables.position != nullptr) {
    const T* table = tables.position_of(h);
    for (int64_t j = low; j < high; j++) x[j - first] += table[b.column(j)];
  }
  if (tables.time != nullptr) {
    const T* table = tables.time_of(h);
    for (int64_t j = low; j < high; j++) {
      const int32_t bucket = tables.bucket(b.query_time - b.times[j]);
      if (buckets != nullptr) buckets[j - first] = bucket;
      x[j - first] += table[bucket];
    }
  }
}

// Bias of a target with itself: distance and time are zero.
template <class T>
static inline T own_bias(const Bias<T>& tables, int64_t h, bool contextual = false) {
  T total = 0;
  if (contextual) return total;
  if (tables.position != nullptr) total += tables.position_of(h)[tables.reach];
  if (tables.time != nullptr) total += tables.time_of(h)[0];
  return total;
}

}  // namespace tzgen
