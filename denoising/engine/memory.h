// Where the engine's tensors live: large blocks that are used again instead of going back to the system.
//
// A fresh block costs a page fault for every 4 KiB, more time than many of the operations on it. So blocks are
// kept, and backed by huge pages where the system has them.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <unordered_map>

class Pool {
 public:
  static Pool& Get() {
    static Pool* pool = new Pool;  // Never destroyed: tensors may outlive everything at exit.
    return *pool;
  }

  void* Take(size_t bytes) {
    if (bytes < kSmall) return std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    std::lock_guard<std::mutex> lock(mutex_);
    size_t size = Round(bytes);
    clock_++;
    auto found = free_.lower_bound(size);
    if (found == free_.end() || found->first > size + size / 4) {
      ReleaseOld();
      void* block = std::aligned_alloc(size < kHugePage ? kSmall : kHugePage, size);
      if (block == nullptr) throw std::bad_alloc();
      if (size >= kHugePage) madvise(block, size, MADV_HUGEPAGE);  // A wish: without huge pages all still works.
      sizes_[block] = size;
      return block;
    }
    void* block = found->second.data;
    free_.erase(found);
    return block;
  }

  void Give(void* block) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto known = sizes_.find(block);
    if (known == sizes_.end()) return std::free(block);  // Small: not ours to keep.
    free_.emplace(known->second, Free{block, clock_});
  }

  // Gives back all that is not in use.
  void Release() {
    std::lock_guard<std::mutex> lock(mutex_);
    ReleaseUnused(0);
  }

 private:
  struct Free {
    void* data;
    int64_t since;
  };
  static constexpr size_t kSmall = size_t{1} << 16;
  static constexpr size_t kHugePage = size_t{1} << 21;
  static constexpr int64_t kKeep = 512;  // About three training steps' worth of tensors.

  // Sizes in steps of an eighth, so that nearby shapes share their blocks.
  static size_t Round(size_t bytes) {
    size_t step = bytes < kHugePage ? kSmall : kHugePage;
    while (step * 16 <= bytes) step *= 2;
    return (bytes + step - 1) / step * step;
  }

  // Before the pool grows: gives back what nobody has asked for lately, so that changing shapes do not add up.
  void ReleaseOld() { ReleaseUnused(kKeep); }

  void ReleaseUnused(int64_t age) {
    for (auto block = free_.begin(); block != free_.end();) {
      if (clock_ - block->second.since < age) {
        ++block;
        continue;
      }
      sizes_.erase(block->second.data);
      std::free(block->second.data);
      block = free_.erase(block);
    }
  }

  std::mutex mutex_;
  std::multimap<size_t, Free> free_;
  std::unordered_map<void*, size_t> sizes_;
  int64_t clock_ = 0;
};

// Memory for the length of a scope.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : data_(Pool::Get().Take(bytes)) {}
  ~Scratch() { Pool::Get().Give(data_); }
  Scratch(const Scratch&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
};
