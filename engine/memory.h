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
    if (bytes < kHugePage / 2) return std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    std::lock_guard<std::mutex> lock(mutex_);
    size_t size = Round(bytes);
    auto found = free_.lower_bound(size);
    if (found == free_.end() || found->first > size + size / 4) {
      // The pool grows only by what all its free blocks together could not have held.
      if (free_bytes_ >= size) Release(size);
      void* block = std::aligned_alloc(kHugePage, size);
      if (block == nullptr) throw std::bad_alloc();
      madvise(block, size, MADV_HUGEPAGE);  // A wish: without huge pages all still works.
      sizes_[block] = size;
      return block;
    }
    void* block = found->second;
    free_bytes_ -= found->first;
    free_.erase(found);
    return block;
  }

  void Give(void* block) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto known = sizes_.find(block);
    if (known == sizes_.end()) return std::free(block);  // Small: not ours to keep.
    size_t size = known->second;
    free_.emplace(size, block);
    free_bytes_ += size;
  }

 private:
  static constexpr size_t kHugePage = size_t{1} << 21;

  // Sizes in steps of an eighth, so that nearby shapes share their blocks.
  static size_t Round(size_t bytes) {
    size_t step = kHugePage;
    while (step * 16 <= bytes) step *= 2;
    return (bytes + step - 1) / step * step;
  }

  void Release(size_t bytes) {
    for (size_t released = 0; released < bytes;) {
      auto largest = std::prev(free_.end());
      released += largest->first;
      free_bytes_ -= largest->first;
      sizes_.erase(largest->second);
      std::free(largest->second);
      free_.erase(largest);
    }
  }

  std::mutex mutex_;
  std::multimap<size_t, void*> free_;
  std::unordered_map<void*, size_t> sizes_;
  size_t free_bytes_ = 0;
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
