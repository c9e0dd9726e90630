#include "durable/rebuild.hpp"

#include <algorithm>
#include <map>
#include <utility>

#include "cpp_store/error.hpp"
#include "durable/files.hpp"
#include "durable/segment.hpp"

namespace cpp_store::durable {

std::vector<std::string> rebuild(Catalogue& catalogue, const std::filesystem::path& segments) {
    std::vector<std::string> troubles;
    std::map<std::uint64_t, ModelRecord> models;   // by serial, as the latest segment has them
    std::map<LayerPlace, LayerRecord> layers;      // where the latest segment has them
    std::map<std::uint64_t, std::uint64_t> bytes;  // of segments
    std::map<std::uint64_t, std::string> names;    // of segments, the oldest first
    for (std::string& name : list_directory(segments)) {
        const std::uint64_t serial = segment_serial(name);
        if (serial != 0 && name == segment_name(serial)) names.emplace(serial, std::move(name));
    }
    for (const auto& [serial, name] : names) {
        try {
            const File file(segments / name, File::Mode::read);
            for (ModelRecord& model : models_in(file)) {
                for (LayerRecord& layer : model.layers) {
                    if (layer.segment != serial) continue;
                    bytes[serial] += layer.nbytes();
                    layers.insert_or_assign(layer.place(), layer);
                }
                models.insert_or_assign(model.serial, std::move(model));
            }
        } catch (const Error& error) {
            troubles.emplace_back(error.what());
        }
    }

    std::map<std::string, std::uint64_t> latest;  // serial by id
    for (const auto& [serial, model] : models) {
        if (!model.retired) latest[model.id] = serial;
    }
    for (auto& [serial, model] : models) {
        std::vector<LayerRecord> found;
        for (const LayerRecord& layer : model.layers) {
            const auto at = layers.find(layer.place());
            if (at != layers.end()) found.push_back(at->second);
        }
        if (found.size() < model.layers.size() && !model.retired) {
            troubles.push_back("model '" + model.id + "' is lost: " +
                               std::to_string(model.layers.size() - found.size()) + " of its " +
                               std::to_string(model.layers.size()) + " layers are in no segment");
            model.retired = true;
        }
        if (!model.retired && latest.at(model.id) != serial) model.retired = true;
        if (model.retired) model.inherited.clear();
        model.layers = std::move(found);
        if (!model.layers.empty()) catalogue.put(model);
    }
    for (const auto& [serial, size] : bytes) catalogue.add_segment({serial, size});
    return troubles;
}

}  // namespace cpp_store::durable
