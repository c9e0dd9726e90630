// What a crash left in the log (redo_log.hpp), brought into the catalogue.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "durable/catalogue.hpp"

namespace cpp_store::durable {

// Returns the number of the last entry that the catalogue has then, as it had before if there was
// no log. Throws Errc::storage, and changes nothing, if the log is damaged; or, where somebody
// wants to know of the `damage`, says so there, goes on without what cannot be read, and moves the
// log aside.
std::uint64_t replay_log(const std::filesystem::path& directory, Catalogue& catalogue,
                         std::uint64_t most_retirements, std::string* damage = nullptr);

}  // namespace cpp_store::durable
