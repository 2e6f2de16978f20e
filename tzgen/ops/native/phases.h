// SPDX-License-Identifier: Apache-2.0
// Phases of a small computation in one parallel region: a thread is woken once, not once a phase.
#pragma once

#include <ATen/Parallel.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace tzgen {

constexpr int LINGER = 40;  // pauses, about a microsecond: the others are on their way out

static inline void breathe(int turn) {
  if (turn >= 2000) return std::this_thread::yield();  // whom we wait for may want our processor
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Calls work(phase, index) for index in [0, counts[phase]); a phase begins when the one before it
// is done. Tickets are handed out in order and only earlier ones are waited for, so that any number
// of threads comes to an end, one included.
template <class Work>
static inline void run_phases(const std::vector<int64_t>& count, int64_t threads,
                              const Work& work) {
  const int64_t phases = int64_t(count.size());
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  const std::unique_ptr<std::atomic<int64_t>[]> done(new std::atomic<int64_t>[phases]());
  const auto finished = [&](int64_t phase) {
    return done[phase].load(std::memory_order_acquire) == count[phase];
  };
  const auto wait = [&](int64_t phase) {
    for (int turn = 0; !finished(phase) && !failed.load(std::memory_order_relaxed); turn++)
      breathe(turn);
  };
  const auto take_turns = [&] {
    for (int64_t phase = 0, first = 0, reached = 0;;) {
      const int64_t ticket = next++;
      while (phase < phases && ticket >= first + count[phase]) first += count[phase++];
      if (phase == phases) return;
      for (; reached < phase; reached++) wait(reached);
      if (failed) return;
      try {
        work(phase, ticket - first);
      } catch (...) {
        failed = true;  // nobody waits for this task
        throw;
      }
      done[phase].fetch_add(1, std::memory_order_release);
    }
  };
  const auto caller = std::this_thread::get_id();
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t stop) {
    for (int64_t thread = begin; thread < stop; thread++) take_turns();
    if (threads == 1 || std::this_thread::get_id() != caller) return;
    // being woken at the region's end takes longer than the last tasks of the others do
    for (int64_t phase = 0; phase < phases; phase++) wait(phase);
    for (int turn = 0; turn < LINGER; turn++) breathe(0);
  });
}

}  // namespace tzgen
