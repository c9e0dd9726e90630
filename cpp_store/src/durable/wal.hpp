// What SQLite does not say of its log (WAL): it takes the first frame that is not right for the end
// of what was written, whatever stands behind it.
#pragma once

#include <filesystem>

namespace cpp_store::durable {

// Whether whole frames of a later transaction follow one that is not right. Each transaction is
// synced before the next one begins, so that is damage, and no write that a crash cut short; to
// open such a catalogue is to lose them.
[[nodiscard]] bool hides_transactions(const std::filesystem::path& log);

}  // namespace cpp_store::durable
