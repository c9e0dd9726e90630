// Digests and stable names. Their meaning is tested in Python against a reference
// (tests/graph_meta/test_naming.py); here are what it refuses, and random graphs for the
// sanitizers.
#include "cpp_store/digest.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>
#include <string>

#include "cpp_store/error.hpp"

namespace cpp_store {
namespace {

using Edge = GraphView::Edge;
using testing::HasSubstr;

// A layer of spec `kind` for each list of calls.
void add_layer(GraphView& graph, std::uint64_t kind, const std::vector<std::vector<Edge>>& calls) {
    for (const std::vector<Edge>& inputs : calls) {
        graph.edges.insert(graph.edges.end(), inputs.begin(), inputs.end());
        graph.calls.push_back({static_cast<std::uint32_t>(graph.edges.size()), ""});
    }
    graph.layers.push_back(
        {{kind, kind}, "Layer", 4 * kind, static_cast<std::uint32_t>(graph.calls.size())});
}

std::string refusal(const GraphView& graph) {
    try {
        (void)name_layers(graph);
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), Errc::invalid_argument);
        return error.what();
    }
    return "accepted";
}

TEST(Digest, NamesAreLabelsAndDigests) {
    GraphView graph;
    add_layer(graph, 1, {{}});
    add_layer(graph, 2, {{{0}}});
    add_layer(graph, 2, {{{0}}});
    graph.inputs = {{0}};
    graph.outputs = {{1}, {2}};
    const NamedLayers named = name_layers(graph);
    EXPECT_EQ(named.digests[1], named.digests[2]);
    EXPECT_EQ(named.occurrences, (std::vector<std::uint32_t>{0, 0, 1}));
    const std::string name(named.table->name(1));
    EXPECT_EQ(name.size(), std::string("Layer_").size() + 32);
    EXPECT_EQ(named.table->name(2), name + "_1");
    EXPECT_EQ(named.table->nbytes(2), 8U);
    EXPECT_EQ(named.table->requires_of(2).size(), 1U);
}

TEST(Digest, TheOrderOfOutputsTellsTwinsApart) {
    // Twins with twin heads: only the outputs say which is which.
    const auto twins = [](std::uint32_t first, std::uint32_t second) {
        GraphView graph;
        add_layer(graph, 1, {{}});
        add_layer(graph, 2, {{{0}}});
        add_layer(graph, 2, {{{0}}});
        graph.inputs = {{0}};
        graph.outputs = {{first}, {second}};
        return name_layers(graph).occurrences;
    };
    EXPECT_EQ(twins(1, 2), (std::vector<std::uint32_t>{0, 0, 1}));
    EXPECT_EQ(twins(2, 1), (std::vector<std::uint32_t>{0, 1, 0}));
}

TEST(Digest, RefusesEdgesThatLeadNowhere) {
    GraphView graph;
    add_layer(graph, 1, {{}});
    add_layer(graph, 2, {{{1}}});
    EXPECT_THAT(refusal(graph), HasSubstr("feeds itself"));
    graph.edges[0] = {2};
    EXPECT_THAT(refusal(graph), HasSubstr("layer 2, which is not there"));
    graph.edges[0] = {0, 1};
    EXPECT_THAT(refusal(graph), HasSubstr("call 1 of layer 0"));
    graph.edges[0] = {0};
    graph.outputs = {{7}};
    EXPECT_THAT(refusal(graph), HasSubstr("an output of the graph is layer 7"));
    graph.outputs = {{1}};
    add_layer(graph, 3, {});
    EXPECT_THAT(refusal(graph), HasSubstr("never called"));

    GraphView cycle;
    add_layer(cycle, 1, {{{1}}});
    add_layer(cycle, 2, {{{0}}});
    EXPECT_THAT(refusal(cycle), HasSubstr("comes later"));
}

TEST(Digest, AnEmptyGraphHasNoNames) {
    EXPECT_EQ(name_layers(GraphView{}).table->size(), 0U);
}

TEST(Digest, RandomGraphsWithTwinsAndSharedLayers) {
    std::mt19937 random(5);
    const auto below = [&](std::size_t end) {
        return static_cast<std::uint32_t>(random() % static_cast<std::uint32_t>(end));
    };
    for (int round = 0; round < 500; ++round) {
        GraphView graph;
        std::vector<std::uint32_t> called{1};
        add_layer(graph, 1, {{}});
        const std::size_t size = 2 + below(30);
        while (graph.layers.size() < size) {
            std::vector<std::vector<Edge>> calls(1 + below(3));
            for (std::vector<Edge>& inputs : calls) {
                inputs.resize(1 + below(3));
                for (Edge& edge : inputs) {
                    const std::uint32_t back = 1 + below(std::min<std::size_t>(4, called.size()));
                    edge.layer = static_cast<std::uint32_t>(called.size()) - back;
                    edge.call = below(called[edge.layer]);
                    edge.tensor = below(2);
                }
            }
            add_layer(graph, 2 + below(2), calls);
            called.push_back(static_cast<std::uint32_t>(calls.size()));
        }
        graph.inputs = {{0}};
        graph.outputs = {{static_cast<std::uint32_t>(size) - 1}};
        const NamedLayers named = name_layers(graph);
        std::set<std::string> names;
        for (std::size_t i = 0; i < size; ++i) names.emplace(named.table->name(i));
        EXPECT_EQ(names.size(), size);
    }
}

}  // namespace
}  // namespace cpp_store
