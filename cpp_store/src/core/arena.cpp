#include "cpp_store/arena.hpp"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <limits>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <system_error>
#include <thread>
#include <tuple>
#include <vector>

#include "core/forks.hpp"
#include "cpp_store/error.hpp"

namespace cpp_store {

namespace {

constexpr std::uint64_t page = 4096;
constexpr std::uint64_t huge_page = std::uint64_t{2} << 20;
constexpr std::uint64_t prefault_chunk = std::uint64_t{4} << 20;
constexpr std::chrono::milliseconds quiet{20};  // longer than a put of some hundred MB is copied

constexpr std::uint64_t round_down(std::uint64_t value, std::uint64_t unit) noexcept {
    return value / unit * unit;
}
constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) noexcept {
    return round_down(value + unit - 1, unit);
}

// A memory file, mapped. Everything before `touched` has been allocated or pre-faulted at least
// once; what lies behind it is fresh and nobody's.
struct Region {
    int fd = -1;
    std::byte* base = nullptr;
    std::uint64_t size = 0;
    std::uint64_t touched = 0;
    std::map<std::uint64_t, std::uint64_t> free;  // offset -> size, before `touched`, coalesced
    std::vector<bool> resident;                   // by page: the kernel has given it
    bool closing = false;                         // being given back to the kernel

    using Block = std::map<std::uint64_t, std::uint64_t>::iterator;

    explicit Region(std::uint64_t bytes) : size(bytes), resident(bytes / page) {
        fd = ::memfd_create("cpp_store", MFD_CLOEXEC);
        if (fd < 0) throw std::system_error(errno, std::generic_category(), "memfd_create");
        if (::ftruncate(fd, static_cast<off_t>(size)) != 0) fail("ftruncate");
        // Other processes get descriptors to read by, and shall not turn them into more.
        if (::fchmod(fd, S_IRUSR) != 0) fail("fchmod");
        void* const mapped = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (mapped == MAP_FAILED) fail("mmap");
        base = static_cast<std::byte*>(mapped);
        ::madvise(base, size, MADV_HUGEPAGE);  // where the kernel grants them to memory files
        ASAN_POISON_MEMORY_REGION(base, size);
    }
    Region(const Region&) = delete;
    Region& operator=(const Region&) = delete;
    ~Region() {
        ASAN_UNPOISON_MEMORY_REGION(base, size);
        ::munmap(base, size);
        ::close(fd);
    }

    struct Pages {  // [first, last), and how many of them are not resident
        std::uint64_t first = 0;
        std::uint64_t last = 0;
        std::uint64_t missing = 0;
    };
    // Those of [from, to), without any that are resident at either end.
    [[nodiscard]] Pages missing(std::uint64_t from, std::uint64_t to) const {
        Pages pages;
        for (std::uint64_t i = from / page; i < round_up(to, page) / page; ++i) {
            if (resident[i]) continue;
            if (pages.missing++ == 0) pages.first = i;
            pages.last = i + 1;
        }
        return pages;
    }

    // Makes the pages that hold [from, to) resident. Returns false if the kernel has no memory.
    [[nodiscard]] bool populate(std::uint64_t from, std::uint64_t to) const noexcept {
        from = round_down(from, page);
        to = std::min(round_up(to, page), size);
        if (from >= to) return true;
        // Allocating in bulk first is about a third faster than letting the page faults do it,
        // and it fails with an error where a fault would be a SIGBUS.
        if (::fallocate(fd, 0, static_cast<off_t>(from), static_cast<off_t>(to - from)) != 0) {
            return false;
        }
#ifdef MADV_POPULATE_WRITE
        ::madvise(base + from, to - from, MADV_POPULATE_WRITE);  // older kernels fault on use
#endif
        return true;
    }

    // Gives the pages of [from, to) back, also those that another process has mapped.
    void punch(std::uint64_t from, std::uint64_t to) const noexcept {
        ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(from),
                    static_cast<off_t>(to - from));
    }

    // Where an allocation that needs fresh bytes would start: the free block that ends at
    // `touched`, if there is one, is used first.
    [[nodiscard]] std::uint64_t tail() const noexcept {
        if (!free.empty()) {
            const auto& [offset, length] = *free.rbegin();
            if (offset + length == touched) return offset;
        }
        return touched;
    }

  private:
    [[noreturn]] void fail(const char* what) const {
        const int error = errno;
        ::close(fd);
        throw std::system_error(error, std::generic_category(), what);
    }
};

}  // namespace

struct Arena::Impl {
    const Options options;
    mutable std::mutex mutex;  // guards everything below; never held while pages are touched
    std::unique_ptr<std::condition_variable> wake = std::make_unique<std::condition_variable>();
    std::vector<std::unique_ptr<Region>> regions;  // by id; null: given back
    using BySize = std::set<std::tuple<std::uint64_t, int, std::uint64_t>>;
    BySize by_size;  // (size, region, offset)
    // What was released when there was no memory to keep it in the two above: it says itself where
    // it is, until there is some.
    struct Limbo {
        Extent extent;
        Limbo* next;
    };
    static_assert(sizeof(Limbo) <= alignment);
    Limbo* limbo = nullptr;
    std::uint64_t used = 0;
    std::uint64_t high_water = 0;
    std::uint64_t mapped = 0;
    // Bytes of pages that the kernel has given us, or is about to. What is free in pieces that do
    // not suit is given back before there is more than the limit of it.
    std::uint64_t resident = 0;
    // The least that was free within the current window of `linger`: what nobody needed in it.
    std::uint64_t least_free = 0;
    bool window_open = false;
    bool awaits_quiet = false;  // the keeper, who then looks at the clock itself
    std::uint64_t allocations = 0;
    std::uint64_t noticed = 0;  // of them, by the keeper
    bool kernel_full = false;   // the last pre-fault failed
    bool stop = false;
    std::thread keeper;  // touches pages ahead of demand and gives surplus back

    // A fork has the memory, but neither this thread nor a say in who uses which part of it: it may
    // read what is there, until it ends.
    const Birthplace birthplace;

    explicit Impl(Options given) : options(sane(given)) {
        keeper = std::thread([this] { keep(); });
    }
    ~Impl() {
        if (forked()) {
            // There is no such thread here, neither to wait for nor to leave the condition that it
            // waited for, whose destructor would wait for that.
            keeper.detach();
            static_cast<void>(wake.release());
            return;
        }
        {
            const std::lock_guard lock(mutex);
            stop = true;
        }
        wake->notify_all();
        keeper.join();
    }

    static Options sane(Options given) noexcept {
        given.linger = std::max(given.linger, std::chrono::milliseconds{1});  // 0 would spin
        return given;
    }

    [[nodiscard]] bool forked() const noexcept { return birthplace.is_elsewhere(); }
    Extent allocate(std::uint64_t bytes);
    void release(const Extent& extent) noexcept;

    // All of the following expect the mutex to be held.
    [[nodiscard]] const Region* region(int id) const noexcept {  // null if it is gone
        const auto index = static_cast<std::size_t>(id);
        return id >= 0 && index < regions.size() ? regions[index].get() : nullptr;
    }
    struct Taken {
        Extent extent;
        Region::Pages pages;  // that it lacks, counted as resident already
    };
    Taken find(std::uint64_t size);
    Taken take(int id, std::uint64_t offset, std::uint64_t size) noexcept;
    template <typename Condition>
    int find_region(Condition suits) const;  // -1 if none does
    int add_region(std::uint64_t size);
    void insert_free(int id, std::uint64_t offset, std::uint64_t size);  // or changes nothing
    void change_free(int id, Region::Block block, std::uint64_t offset,
                     std::uint64_t size) noexcept;
    void erase_free(int id, Region::Block block) noexcept;
    void leave_limbo() noexcept;
    [[nodiscard]] std::uint64_t warm_free() const noexcept {
        return resident - std::min(resident, used);
    }
    void set_resident(Region& region, std::uint64_t from, std::uint64_t to, bool is) noexcept;
    void punch_free(std::uint64_t bytes) noexcept;
    [[nodiscard]] std::uint64_t most_resident() const noexcept {
        return options.limit + std::max(options.limit / 10, huge_page);
    }
    [[noreturn]] void fail(std::uint64_t need, const std::string& why) const;

    // The background thread.
    void keep();
    bool wants_prefault() const noexcept;
    bool is_short() const noexcept;
    bool is_quiet(std::unique_lock<std::mutex>& lock);
    void prefault(std::unique_lock<std::mutex>& lock);
    void trim(std::unique_lock<std::mutex>& lock);
    void trim_tail(int id, std::uint64_t surplus, std::unique_lock<std::mutex>& lock);
};

Extent Arena::Impl::allocate(std::uint64_t bytes) {
    if (bytes == 0) return {};
    if (bytes > std::numeric_limits<std::int64_t>::max()) {
        const std::lock_guard lock(mutex);
        fail(bytes, "");
    }
    if (forked()) {
        throw Error(Errc::invalid_argument,
                    "the store belongs to process " + std::to_string(birthplace.process()) +
                        ", of which this is a fork; it can be read here, but not written to");
    }
    const std::uint64_t size = round_up(bytes, alignment);
    std::unique_lock lock(mutex);
    if (size > options.limit || used > options.limit - size) fail(size, "");
    leave_limbo();

    // What is free first: best fit, the lowest region and offset among equals.
    const auto [extent, pages] = find(size);
    if (pages.missing == 0) return extent;
    Region& region = *regions[static_cast<std::size_t>(extent.region)];
    if (resident > options.limit) punch_free(resident - options.limit);
    const bool is_too_much = resident > most_resident();
    lock.unlock();
    // The extent is ours already, so the region stays.
    const bool is_populated =
        !is_too_much && region.populate(pages.first * page, pages.last * page);
    lock.lock();
    resident -= pages.missing * page;
    if (is_populated) {
        // Others may have done the same with the first page, or the last.
        set_resident(region, extent.offset, extent.offset + size, true);
        return extent;
    }
    lock.unlock();
    release(extent);
    lock.lock();
    fail(size, is_too_much ? "; what is free is in pieces smaller than a page"
                           : "; the machine has no memory left");
}

// Expects the mutex to be held.
Arena::Impl::Taken Arena::Impl::find(std::uint64_t size) {
    if (const auto fit = by_size.lower_bound({size, -1, 0}); fit != by_size.end()) {
        const auto [length, id, offset] = *fit;
        return take(id, offset, size);
    }
    int id = find_region([size](const Region& each) { return each.size - each.tail() >= size; });
    if (id < 0) id = add_region(size);
    Region& region = *regions[static_cast<std::size_t>(id)];
    const std::uint64_t offset = region.tail();
    insert_free(id, region.touched, offset + size - region.touched);
    region.touched = offset + size;
    return take(id, offset, size);
}

// Of whole pages in [from, to) that become what they were not.
void Arena::Impl::set_resident(Region& region, std::uint64_t from, std::uint64_t to,
                               bool is) noexcept {
    const std::uint64_t last = is ? round_up(to, page) : round_down(to, page);
    for (std::uint64_t i = (is ? from : round_up(from, page)) / page; i < last / page; ++i) {
        if (region.resident[i] == is) continue;
        region.resident[i] = is;
        resident = is ? resident + page : resident - page;
    }
}

// Gives back so much, and a little more, of the pages that are free, of the largest pieces first.
void Arena::Impl::punch_free(std::uint64_t bytes) noexcept {
    bytes += options.limit / 64;  // so that the next allocations need not look for more
    const std::uint64_t least = resident - std::min(resident, bytes);
    for (auto block = by_size.rbegin(); block != by_size.rend() && resident > least; ++block) {
        const auto [size, id, offset] = *block;
        Region& region = *regions[static_cast<std::size_t>(id)];
        const std::uint64_t end = round_down(offset + size, page);
        for (std::uint64_t at = round_up(offset, page); at < end && resident > least; at += page) {
            if (!region.resident[at / page]) continue;
            const std::uint64_t from = at;
            while (at < end && region.resident[at / page] && at - from < resident - least) {
                at += page;
            }
            region.punch(from, at);
            set_resident(region, from, at, false);
        }
        if (size < page) return;
    }
}

// Cuts an extent from the start of the free block that lies at `offset`.
Arena::Impl::Taken Arena::Impl::take(int id, std::uint64_t offset, std::uint64_t size) noexcept {
    Region& region = *regions[static_cast<std::size_t>(id)];
    const auto block = region.free.find(offset);
    const std::uint64_t length = block->second;
    if (length > size) {
        change_free(id, block, offset + size, length - size);
    } else {
        erase_free(id, block);
    }
    const Region::Pages pages = region.missing(offset, offset + size);
    resident += pages.missing * page;
    used += size;
    least_free = std::min(least_free, warm_free());
    ++allocations;
    high_water = std::max(high_water, used);
    if (wants_prefault() && (!awaits_quiet || is_short())) wake->notify_one();
    ASAN_UNPOISON_MEMORY_REGION(region.base + offset, size);
    return {{region.base + offset, size, id, offset}, pages};
}

template <typename Condition>
int Arena::Impl::find_region(Condition suits) const {
    for (std::size_t id = 0; id < regions.size(); ++id) {
        const Region* const region = regions[id].get();
        if (region && !region->closing && suits(*region)) return static_cast<int>(id);
    }
    return -1;
}

int Arena::Impl::add_region(std::uint64_t size) {
    const std::uint64_t bytes = round_up(std::max(size, options.region_size), huge_page);
    try {
        regions.push_back(std::make_unique<Region>(bytes));
    } catch (const std::system_error& error) {
        fail(size, std::string("; the kernel gives no region: ") + error.what());
    }
    mapped += bytes;
    return static_cast<int>(regions.size() - 1);
}

void Arena::Impl::insert_free(int id, std::uint64_t offset, std::uint64_t size) {
    if (size == 0) return;
    Region& region = *regions[static_cast<std::size_t>(id)];
    const auto next = region.free.lower_bound(offset);
    const auto before = next == region.free.begin() ? region.free.end() : std::prev(next);
    const bool joins_before =
        before != region.free.end() && before->first + before->second == offset;
    const bool joins_next = next != region.free.end() && offset + size == next->first;
    if (joins_before) {
        const std::uint64_t start = before->first;
        std::uint64_t sum = before->second + size;
        if (joins_next) {
            sum += next->second;
            erase_free(id, next);
        }
        change_free(id, before, start, sum);
    } else if (joins_next) {
        change_free(id, next, offset, size + next->second);
    } else {
        const auto block = region.free.emplace_hint(next, offset, size);
        try {
            by_size.insert({size, id, offset});
        } catch (const std::bad_alloc&) {
            region.free.erase(block);
            throw;
        }
    }
}

// Gives a block other bounds, which keep its place among the others. Takes no memory: the nodes
// stay.
void Arena::Impl::change_free(int id, Region::Block block, std::uint64_t offset,
                              std::uint64_t size) noexcept {
    Region& region = *regions[static_cast<std::size_t>(id)];
    auto sized = by_size.extract({block->second, id, block->first});
    sized.value() = {size, id, offset};
    by_size.insert(std::move(sized));
    if (offset == block->first) {
        block->second = size;
        return;
    }
    auto node = region.free.extract(block);
    node.key() = offset;
    node.mapped() = size;
    region.free.insert(std::move(node));
}

void Arena::Impl::erase_free(int id, Region::Block block) noexcept {
    by_size.erase({block->second, id, block->first});
    regions[static_cast<std::size_t>(id)]->free.erase(block);
}

// Whoever gives memory back could do nothing about a failure, so there is none.
void Arena::Impl::release(const Extent& extent) noexcept {
    if (extent.size == 0 || forked()) return;
    ASAN_POISON_MEMORY_REGION(extent.data, extent.size);
    const std::lock_guard lock(mutex);
    used -= extent.size;
    try {
        insert_free(extent.region, extent.offset, extent.size);
    } catch (const std::bad_alloc&) {
        ASAN_UNPOISON_MEMORY_REGION(extent.data, sizeof(Limbo));
        limbo = ::new (static_cast<void*>(extent.data)) Limbo{extent, limbo};
        return;
    }
    if (!window_open && warm_free() > options.ahead) wake->notify_one();
}

void Arena::Impl::leave_limbo() noexcept {
    while (limbo) {
        const auto [extent, next] = *limbo;
        try {
            insert_free(extent.region, extent.offset, extent.size);
        } catch (const std::bad_alloc&) {
            return;
        }
        ASAN_POISON_MEMORY_REGION(extent.data, sizeof(Limbo));
        limbo = next;
    }
}

void Arena::Impl::fail(std::uint64_t need, const std::string& why) const {
    throw Error(Errc::out_of_memory, "need " + std::to_string(need) + " bytes, limit " +
                                         std::to_string(options.limit) + ", used " +
                                         std::to_string(used) + why);
}

bool Arena::Impl::wants_prefault() const noexcept {
    return warm_free() < options.ahead && resident < options.limit && !kernel_full;
}

bool Arena::Impl::is_short() const noexcept {
    return warm_free() < options.ahead / 4;
}

// Whether nobody allocates for a moment. Touching pages takes a processor, and the kernel's time
// with it, from those who are about to fill what they allocated: with two processors the first put
// of a server took twice as long. What is still warm suffices for them.
bool Arena::Impl::is_quiet(std::unique_lock<std::mutex>& lock) {
    if (noticed == allocations) return true;
    noticed = allocations;
    awaits_quiet = true;
    wake->wait_for(lock, quiet, [this] { return stop || is_short() || !wants_prefault(); });
    awaits_quiet = false;
    return !stop && noticed == allocations && wants_prefault();
}

void Arena::Impl::keep() {
    std::unique_lock lock(mutex);
    while (!stop) {
        if (wants_prefault()) {
            if (is_short() || is_quiet(lock)) prefault(lock);
        } else if (warm_free() > options.ahead || kernel_full) {
            // Nothing to do now, but perhaps after a while without need for the surplus.
            window_open = true;
            least_free = warm_free();
            wake->wait_for(lock, options.linger, [this] { return stop || wants_prefault(); });
            window_open = false;
            kernel_full = false;
            if (!stop && least_free > options.ahead) trim(lock);
        } else {
            wake->wait(lock,
                       [this] { return stop || wants_prefault() || warm_free() > options.ahead; });
        }
    }
}

void Arena::Impl::prefault(std::unique_lock<std::mutex>& lock) {
    int id = find_region([](const Region& each) { return each.touched < each.size; });
    try {
        if (id < 0) id = add_region(page);
    } catch (const std::exception&) {
        kernel_full = true;  // allocate() will say so when somebody needs the memory
        return;
    }
    // Only this thread unmaps regions, so the reference stays good without the lock.
    Region& region = *regions[static_cast<std::size_t>(id)];
    const std::uint64_t from = region.touched;
    const std::uint64_t want =
        std::min({prefault_chunk, options.ahead - warm_free(), options.limit - resident});
    const std::uint64_t to = std::min(round_up(from + want, page), region.size);
    lock.unlock();
    const bool is_populated = region.populate(from, to);
    lock.lock();
    kernel_full = !is_populated;
    // In the second case, allocate() went past us meanwhile and touched them itself.
    if (!is_populated || region.touched >= to) return;
    try {
        insert_free(id, region.touched, to - region.touched);
        region.touched = to;
        set_resident(region, from, to, true);
    } catch (const std::bad_alloc&) {
        kernel_full = true;
    }
}

// Gives back what was free throughout the last window, from the ends of the regions, the youngest
// region first. Holes between allocations stay: they are the memory to use next.
void Arena::Impl::trim(std::unique_lock<std::mutex>& lock) {
    std::uint64_t surplus = least_free - options.ahead;
    for (std::size_t id = regions.size(); id-- > 0 && surplus > 0 && !stop;) {
        if (!regions[id]) continue;
        const std::uint64_t before = warm_free();
        trim_tail(static_cast<int>(id), surplus, lock);
        const std::uint64_t given = before > warm_free() ? before - warm_free() : 0;
        surplus -= std::min(surplus, given);
    }
}

void Arena::Impl::trim_tail(int id, std::uint64_t surplus, std::unique_lock<std::mutex>& lock) {
    Region& region = *regions[static_cast<std::size_t>(id)];
    const std::uint64_t start = region.tail();
    const std::uint64_t end = region.touched;
    const std::uint64_t cut =
        round_up(std::max(start, end - std::min(surplus, end)), page);  // the rest stays
    if (cut >= end) return;

    // Out of everybody's reach first, then without the lock to the kernel.
    const bool whole = cut == 0 && mapped > region.size;
    region.closing = whole;
    if (cut > start) {
        change_free(id, region.free.find(start), start, cut - start);
    } else {
        erase_free(id, region.free.find(start));
    }
    set_resident(region, cut, end, false);
    lock.unlock();
    region.punch(cut, end);
    lock.lock();
    if (whole) {
        set_resident(region, 0, round_up(end, page), false);
        mapped -= region.size;
        regions[static_cast<std::size_t>(id)].reset();
    } else if (region.touched == end) {
        region.touched = cut;
    } else {
        try {
            insert_free(id, cut, end - cut);  // somebody allocated behind it
        } catch (const std::bad_alloc&) {
            // There is no memory behind these addresses any more, so none is lost.
        }
    }
}

Arena::Arena(const Options& options) : impl_(std::make_unique<Impl>(options)) {}

Arena::~Arena() = default;

Extent Arena::allocate(std::uint64_t bytes) {
    return impl_->allocate(bytes);
}

void Arena::release(const Extent& extent) noexcept {
    impl_->release(extent);
}

bool Arena::has_region(int region) const {
    const std::lock_guard lock(impl_->mutex);
    return impl_->region(region) != nullptr;
}

int Arena::region_fd(int region) const {
    const std::lock_guard lock(impl_->mutex);
    const Region* const found = impl_->region(region);
    if (!found) {
        throw Error(Errc::invalid_argument, "the arena has no region " + std::to_string(region));
    }
    return found->fd;
}

Arena::Stats Arena::stats() const {
    const std::lock_guard lock(impl_->mutex);
    return {impl_->options.limit, impl_->used, impl_->high_water, impl_->mapped, impl_->resident};
}

}  // namespace cpp_store
