#include "cpp_store/check.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "core/checksum.hpp"
#include "cpp_store/error.hpp"
#include "durable/catalogue.hpp"
#include "durable/journal.hpp"
#include "durable/rebuild.hpp"
#include "durable/segment.hpp"

namespace cpp_store::durable {
namespace {

// A layer for people.
std::string name_of(const ModelRecord& model, const LayerRecord& layer) {
    if (layer.key) return hex(*layer.key);
    if (layer.position >= model.table->size()) return std::to_string(layer.position);
    return std::string(model.table->name(layer.position));
}

class Checker {
  public:
    Checker(const std::filesystem::path& directory, bool repair)
        : directory_(directory),
          segments_path_(directory / "segments"),
          lock_(lock_directory(directory)),
          catalogue_(prepare(repair), repair || !has_data(directory)),
          repair_(repair) {}

    CheckReport run() {
        check_catalogue();
        load();
        check_files();
        for (const auto& [segment, layers] : by_segment_) check_layers(segment, layers);
        check_references();
        catalogue_.begin();
        for (std::string& leak : catalogue_.leaks(repair_)) {
            report_.leaks.push_back(std::move(leak));
        }
        if (repair_) repair();
        catalogue_.commit();
        if (repair_) {
            for (const std::string& name : unknown_) move_aside(directory_, segments_path_ / name);
        }
        return std::move(report_);
    }

  private:
    // The catalogue's path; of what opening it would lose there is a copy before.
    std::filesystem::path prepare(bool repair) {
        const std::filesystem::path path = directory_ / "catalogue.sqlite";
        const std::filesystem::path log = directory_ / "catalogue.sqlite-wal";
        std::error_code error;
        const std::uintmax_t size = std::filesystem::file_size(path, error);
        bool is_lost = (error || size == 0) && std::filesystem::exists(log, error);
        try {
            (void)catalogue_of(directory_);
        } catch (const Error& damage) {
            if (!repair) throw;
            report_.damage.emplace_back(damage.what());
            is_lost = true;
        }
        if (repair && is_lost) {
            const std::filesystem::path copy = directory_ / "catalogue.sqlite-wal.damaged";
            std::filesystem::copy_file(log, copy,
                                       std::filesystem::copy_options::overwrite_existing);
            move_aside(directory_, copy);
        }
        return path;
    }

    void check_catalogue() {
        if (catalogue_.is_new() && has_data(directory_)) {
            report_.damage.emplace_back(
                "there was no catalogue: it is made anew of what the segments say; models of few "
                "bytes were in it only, and models that were retired are back if all of their "
                "layers are there");
            catalogue_.begin();
            for (std::string& trouble : rebuild(catalogue_, segments_path_)) {
                report_.damage.push_back(std::move(trouble));
            }
            catalogue_.commit();
        }
        const std::string found = catalogue_.integrity();
        if (found.empty()) return;
        std::string& damage = report_.damage.emplace_back("the catalogue itself: " + found);
        if (!repair_) return;
        try {
            catalogue_.rebuild_indexes();
        } catch (const Error&) {
            // It is not only them, as is found out now.
        }
        if (catalogue_.integrity().empty()) {
            damage += "; its indexes are rebuilt";
            return;
        }
        // Whatever else would be changed in it could be lost, or harm more.
        damage += "; nothing is repaired, cpp-store export what can be read";
        repair_ = false;
    }

    void load() {
        catalogue_.models(
            [this](ModelRecord model) {
                (model.retired ? report_.retired : report_.models) += 1;
                for (const LayerRecord& layer : model.layers) {
                    ++report_.layers;
                    report_.bytes += layer.nbytes();
                    by_segment_[layer.segment].push_back(layer);
                    if (!layer.key && layer.position >= model.table->size()) {
                        report_.damage.push_back("model '" + model.id + "' has no layer " +
                                                 std::to_string(layer.position));
                        bad_.insert({model.serial, layer.position});
                    }
                }
                models_.emplace(model.serial, std::move(model));
            },
            [this](std::uint64_t serial) {
                report_.damage.push_back("model number " + std::to_string(serial) +
                                         " of the catalogue cannot be decoded");
                undecodable_.push_back(serial);
            });
    }

    // Segments without an entry, entries without a segment.
    void check_files() {
        std::set<std::uint64_t> known;
        for (const SegmentRecord& segment : catalogue_.segments()) {
            if (segment.serial == 0) {  // which stands for the catalogue
                report_.damage.push_back("segment 0 has an entry");
                continue;
            }
            known.insert(segment.serial);
            ++report_.segments;
            std::uint64_t live = 0;
            for (const LayerRecord& layer : by_segment_[segment.serial]) live += layer.nbytes();
            report_.dead_bytes += segment.data_bytes - std::min(live, segment.data_bytes);
        }
        for (const auto& [segment, layers] : by_segment_) {
            if (segment == 0 || known.contains(segment)) continue;
            report_.damage.push_back("segment " + std::to_string(segment) + " has no entry");
            for (const LayerRecord& layer : layers) bad_.insert(layer.place());
        }
        for (const std::string& name : list_directory(segments_path_)) {
            const std::uint64_t serial = segment_serial(name);
            if (serial != 0 && name == segment_name(serial) && known.contains(serial)) continue;
            report_.leaks.push_back("file segments/" + name + " that the catalogue does not know");
            unknown_.push_back(name);
        }
    }

    // Reads what is in one segment, or in the catalogue (0).
    void check_layers(std::uint64_t segment, const std::vector<LayerRecord>& layers) {
        std::optional<File> file;
        if (segment != 0) {
            try {
                file.emplace(segments_path_ / segment_name(segment), File::Mode::read);
                (void)check_segment(*file);
            } catch (const Error& error) {
                report_.damage.push_back(error.what());
            }
        }
        for (const LayerRecord& layer : layers) {
            if (segment == 0 ? is_intact(layer, catalogue_.small(layer.place()))
                             : file && is_intact(layer, *file)) {
                continue;
            }
            const ModelRecord& owner = models_.at(layer.owner);
            report_.damage.push_back(
                "layer '" + name_of(owner, layer) + "' of model '" + owner.id + "' in " +
                (segment != 0 ? "segments/" + segment_name(segment) : "the catalogue") +
                ": other bytes than were put");
            bad_.insert(layer.place());
        }
    }

    static bool is_intact(const LayerRecord& layer, const std::vector<std::byte>& bytes) {
        return std::ranges::all_of(layer.tensors, [&](const TensorRecord& tensor) {
            const auto part = tensor.within(bytes);
            return part && checksum_of(part->data(), part->size()) == tensor.checksum;
        });
    }
    static bool is_intact(const LayerRecord& layer, const File& file) {
        try {
            return std::ranges::all_of(layer.tensors, [&](const TensorRecord& tensor) {
                const auto bytes = file.read(tensor.offset, tensor.spec.nbytes());
                return checksum_of(bytes.data(), bytes.size()) == tensor.checksum;
            });
        } catch (const Error&) {
            return false;
        }
    }

    void check_references() {
        for (const auto& [serial, model] : models_) {
            for (const InheritedRecord& inherited : model.inherited) {
                if (inherited.owner == 0 || inherits_well(model, inherited)) continue;
                report_.damage.push_back("model '" + model.id + "' inherits layer " +
                                         std::to_string(inherited.position) +
                                         " from one that is not there");
                needing_.insert(serial);
            }
        }
    }

    [[nodiscard]] bool inherits_well(const ModelRecord& model,
                                     const InheritedRecord& inherited) const {
        const auto owner = models_.find(inherited.owner);
        if (owner == models_.end() || inherited.position >= model.table->size()) return false;
        for (const LayerRecord& layer : owner->second.layers) {
            if (layer.position != inherited.owner_position) continue;
            const LayerKey wanted = model.table->key(inherited.position);
            if (layer.key) return *layer.key == wanted;
            const LayerTable& table = *owner->second.table;
            return layer.position < table.size() && table.key(layer.position) == wanted;
        }
        return false;
    }

    // Drops bad layers and whoever needs one.
    void repair() {
        for (const auto& [serial, model] : models_) {
            bool is_whole = !needing_.contains(serial);
            for (const LayerRecord& layer : model.layers) {
                is_whole = is_whole && !bad_.contains({serial, layer.position});
            }
            for (const InheritedRecord& inherited : model.inherited) {
                is_whole = is_whole && !bad_.contains({inherited.owner, inherited.owner_position});
            }
            if (is_whole || model.retired) continue;
            report_.dropped.push_back(model.id);
            catalogue_.retire(serial);
        }
        for (const LayerPlace& bad : bad_) (void)catalogue_.drop_layer(bad.model, bad.position);
        for (const std::uint64_t serial : undecodable_) {
            report_.dropped.push_back("number " + std::to_string(serial));
            catalogue_.remove_model(serial);
        }
        while (!catalogue_.leaks(true).empty()) {  // what only they needed
        }
        for (const SegmentRecord& segment : catalogue_.segments()) {
            if (segment.serial != 0 && !catalogue_.layers_in(segment.serial).empty()) continue;
            catalogue_.remove_segment(segment.serial);
            unknown_.push_back(segment_name(segment.serial));
        }
    }

    const std::filesystem::path directory_;
    const std::filesystem::path segments_path_;
    const File lock_;
    CheckReport report_;
    Catalogue catalogue_;
    bool repair_;
    std::map<std::uint64_t, ModelRecord> models_;  // by serial
    std::map<std::uint64_t, std::vector<LayerRecord>> by_segment_;
    std::set<LayerPlace> bad_;
    std::set<std::uint64_t> needing_;  // models that inherit what is not there
    std::vector<std::uint64_t> undecodable_;
    std::vector<std::string> unknown_;  // files
};

}  // namespace
}  // namespace cpp_store::durable

namespace cpp_store {

CheckReport check_directory(const std::filesystem::path& directory, bool repair) {
    std::error_code error;
    if (!std::filesystem::exists(directory / "catalogue.sqlite", error) &&
        !std::filesystem::exists(directory / "segments", error)) {
        throw Error(Errc::invalid_argument,
                    directory.string() + " is no data directory: it has no catalogue.sqlite");
    }
    return durable::Checker(directory, repair).run();
}

}  // namespace cpp_store
