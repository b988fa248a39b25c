// Memory for large outputs. Fresh memory is first touched page by page, which for an output that is written once takes
// as long as computing it: it comes in pages of 2 MB instead of 4 KB, and what is given back is kept for the next call.
#include <atomic>
#include <vector>

#include <pybind11/stl.h>

#include "tensor.h"

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#include <sys/mman.h>
#endif

namespace pyfast {
namespace {

constexpr size_t page = size_t{1} << 21, small_page = size_t{1} << 12;
constexpr size_t most_kept = 32 * page;

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)

struct Block {
    void* data;
    size_t bytes;
};

// Blocks that nobody uses, the oldest first. Whoever finds it in use goes without: nothing ever waits here, not even a
// process that was forked while a thread held it.
class Kept {
  public:
    // A block that is large enough and not much larger, or none.
    void* take(size_t bytes, size_t& found) {
        if (busy_.test_and_set(std::memory_order_acquire)) return nullptr;
        void* data = nullptr;
        for (size_t k = 0; k < blocks_.size(); ++k)
            if (blocks_[k].bytes >= bytes && blocks_[k].bytes <= bytes + bytes / 4) {
                data = blocks_[k].data, found = blocks_[k].bytes, total_ -= found;
                blocks_.erase(blocks_.begin() + int64_t(k));
                break;
            }
        busy_.clear(std::memory_order_release);
        return data;
    }

    void give(void* data, size_t bytes) {
        if (bytes > most_kept || busy_.test_and_set(std::memory_order_acquire)) {
            munmap(data, bytes);
            return;
        }
        while (total_ + bytes > most_kept) drop();
        blocks_.push_back({data, bytes}), total_ += bytes;
        busy_.clear(std::memory_order_release);
    }

    // Gives all of them back.
    void trim() {
        if (busy_.test_and_set(std::memory_order_acquire)) return;
        while (!blocks_.empty()) drop();
        busy_.clear(std::memory_order_release);
    }

    Kept() { blocks_.reserve(128); }

  private:
    void drop() {
        munmap(blocks_.front().data, blocks_.front().bytes);
        total_ -= blocks_.front().bytes;
        blocks_.erase(blocks_.begin());
    }

    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
    std::vector<Block> blocks_;
    size_t total_ = 0;
};

Kept& kept() {
    static Kept* one = new Kept;  // outlives every tensor
    return *one;
}

// At least so many bytes, or none.
void* obtain(size_t& bytes) {
    bytes = (bytes + small_page - 1) / small_page * small_page;
    size_t found = bytes;
    if (void* data = kept().take(bytes, found)) {
        bytes = found;
        return data;
    }
    void* const all = mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) return nullptr;
    char* const begin = static_cast<char*>(all);
    const size_t before = (page - reinterpret_cast<uintptr_t>(begin) % page) % page;
    if (before) munmap(begin, before);
    if (before < page) munmap(begin + before + bytes, page - before);
    madvise(begin + before, bytes / page * page, MADV_HUGEPAGE);  // where this advice is not taken, nothing is lost
    return begin + before;
}

void release(void* data, size_t bytes) {
    kept().give(data, bytes);
}
void trim() {
    kept().trim();
}

#else  // where a sanitizer should see every end

void* obtain(size_t&) {
    return nullptr;
}
void release(void*, size_t) {}
void trim() {}

#endif

struct Managed {  // DLPack's DLManagedTensor
    dlpack::View view;
    void* context;
    void (*deleter)(Managed*);
    size_t bytes;
    std::vector<int64_t> shape;
};

// A contiguous tensor, unwritten, in a DLPack capsule; None where there is no such memory. Python has checked sizes.
py::object allocate(std::vector<int64_t> shape, int code, int bits) {
    size_t bytes = size_t(bits) / 8;
    for (const int64_t n : shape) bytes *= size_t(n);
    void* const data = obtain(bytes);
    if (!data) return py::none();
    auto* const managed = new Managed{
        {}, nullptr, [](Managed* m) { release(m->view.data, m->bytes), delete m; }, bytes, std::move(shape)};
    managed->view = {data,
                     {dlpack::cpu, 0},
                     int32_t(managed->shape.size()),
                     {uint8_t(code), uint8_t(bits), 1},
                     managed->shape.data(),
                     nullptr,
                     0};
    return py::capsule(managed, "dltensor", [](PyObject* capsule) {
        if (!PyCapsule_IsValid(capsule, "dltensor")) return;  // a tensor owns it
        auto* const m = static_cast<Managed*>(PyCapsule_GetPointer(capsule, "dltensor"));
        m->deleter(m);
    });
}

}  // namespace

void bind_memory(py::module_& m) {
    m.def("allocate", &allocate);
    m.def("trim", &trim);
}

}  // namespace pyfast
