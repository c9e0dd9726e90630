#include "durable/replay.hpp"

#include <span>

#include "cpp_store/error.hpp"
#include "durable/batch.hpp"

namespace cpp_store::durable {
namespace {

// Small tensors become packets: they are packed as the directory is opened.
void replay(Catalogue& catalogue, const Change& change, std::uint64_t most_retirements) {
    const std::uint64_t segment = change.written_ahead();
    if (segment != 0) catalogue.add_segment({segment, change.record->nbytes()});
    (void)apply(catalogue, change, most_retirements);
}

}  // namespace

std::uint64_t replay_log(const std::filesystem::path& directory, Catalogue& catalogue,
                         std::uint64_t most_retirements, std::string* damage) {
    const std::uint64_t before = catalogue.applied();
    std::uint64_t last = before;
    bool is_damaged = false;
    catalogue.begin();
    try {
        try {
            read_log(directory, before,
                     [&](std::uint64_t number, std::span<const std::byte> content) {
                         Reader in(content);
                         for (std::uint32_t left = in.count(1); left > 0; --left) {
                             replay(catalogue, decode_change(in), most_retirements);
                         }
                         in.end();
                         last = number;
                     });
        } catch (const Error& error) {
            if (!damage) throw;
            *damage = error.what();
            is_damaged = true;
        }
        if (last > before) catalogue.set_applied(last);
        catalogue.commit();
    } catch (...) {
        catalogue.rollback();
        throw;
    }
    if (is_damaged) {
        move_log_aside(directory);
    } else {
        remove_log(directory);
    }
    return last;
}

}  // namespace cpp_store::durable
