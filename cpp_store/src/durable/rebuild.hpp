// A catalogue that is lost, made anew of what the segments say.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "durable/catalogue.hpp"

namespace cpp_store::durable {

// Within a transaction of a new catalogue. Models whose own layers are all found come back, those
// of one id the latest; of others what is found, for those who inherit it. Returns what is not put
// together, as sentences. Segments that say nothing stay unknown to the catalogue.
[[nodiscard]] std::vector<std::string> rebuild(Catalogue& catalogue,
                                               const std::filesystem::path& segments);

}  // namespace cpp_store::durable
