// Which servers keep a model, and what its layers are called by.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "cpp_store/types.hpp"

namespace cpp_store::replication {

// Where there are several replicas, the owner of layers is called by its id and the digest of its
// content, `id@<32 hex digits>`: what one of two models of an id owns is never taken for the
// other's.
[[nodiscard]] std::string owner_name(std::string_view model, const Checksum& content);
// The id in such a name, and in those of earlier versions, which end in a decimal number.
[[nodiscard]] std::string_view id_of(std::string_view owner) noexcept;

// Rendezvous hashing: each server's address has a hash together with a model's id, and the servers
// of the highest hashes keep the model. If a server is added to the list, only the models that it
// takes over move.
class Placement {
  public:
    Placement() = default;
    // At least one server; `replicas` between 1 and their number.
    Placement(std::vector<std::string> servers, std::size_t replicas);

    [[nodiscard]] const std::vector<std::string>& servers() const noexcept { return servers_; }
    [[nodiscard]] std::size_t replicas() const noexcept { return replicas_; }

    // Positions in servers() of those that keep a model, the highest hash first.
    [[nodiscard]] std::vector<std::size_t> of(std::string_view model) const;
    // The same of an owner of layers, by its name.
    [[nodiscard]] std::vector<std::size_t> of_owner(std::string_view owner) const;
    // The first of them.
    [[nodiscard]] std::size_t home(std::string_view model) const noexcept;

  private:
    std::vector<std::string> servers_;
    std::size_t replicas_ = 1;
};

}  // namespace cpp_store::replication
