// Key files: only their owner may have been able to read them.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>
#include <vector>

#include "cpp_store/error.hpp"
#include "cpp_store/keys.hpp"
#include "security/key.hpp"

namespace cpp_store::security {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

std::string refusal(const std::function<void()>& action) {
    try {
        action();
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), Errc::invalid_argument);
        EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << "more than a line";
        return error.what();
    }
    return {};
}

class Keys : public testing::Test {
  protected:
    Keys() : directory_(fs::temp_directory_path() / ("keys-" + std::to_string(::getpid()))) {
        fs::create_directory(directory_);
        ::unsetenv("CPP_STORE_KEY");
        ::unsetenv("CPP_STORE_KEY_FILE");
    }
    ~Keys() override { fs::remove_all(directory_); }

    [[nodiscard]] std::string path(const std::string& name) const { return directory_ / name; }
    std::string write(const std::string& name, const std::string& text, mode_t mode = 0600) const {
        std::ofstream(path(name)) << text;
        ::chmod(path(name).c_str(), mode);
        return path(name);
    }

    const fs::path directory_;
};

const std::string key(64, 'a');

TEST_F(Keys, AreMadeAndReadBack) {
    make_key_file(path("key"));
    struct stat found {};
    ASSERT_EQ(::stat(path("key").c_str(), &found), 0);
    EXPECT_EQ(found.st_mode & 07777, 0600u);
    const std::string text = read_key_file(path("key"));
    EXPECT_THAT(text, testing::MatchesRegex("[0-9a-f]+"));
    EXPECT_EQ(text.size(), 64u);
    make_key_file(path("other"));
    EXPECT_NE(read_key_file(path("other")), text);
}

TEST_F(Keys, AreNotOverwritten) {
    make_key_file(path("key"));
    EXPECT_THAT(refusal([&] { make_key_file(path("key")); }), HasSubstr("exists"));
    fs::create_symlink(path("elsewhere"), path("link"));
    EXPECT_THAT(refusal([&] { make_key_file(path("link")); }), HasSubstr("exists"));
    EXPECT_FALSE(fs::exists(path("elsewhere")));
}

TEST_F(Keys, ThatOthersCanUseAreRefused) {
    for (const mode_t mode : {0640u, 0604u, 0660u, 0644u, 0611u}) {
        const std::string file = write("key", key, mode);
        EXPECT_THAT(refusal([&] { (void)read_key_file(file); }), HasSubstr("chmod 600"));
    }
    EXPECT_EQ(read_key_file(write("key", key, 0400)), key);
}

TEST_F(Keys, OfSomebodyElseAreRefused) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root can give a file away";
    const std::string file = write("key", key);
    ASSERT_EQ(::chown(file.c_str(), 12345, 12345), 0);
    EXPECT_THAT(refusal([&] { (void)read_key_file(file); }), HasSubstr("belongs to user 12345"));
}

TEST_F(Keys, BehindLinksOrOfOtherKindsAreRefused) {
    fs::create_symlink(write("key", key), path("link"));
    EXPECT_THAT(refusal([&] { (void)read_key_file(path("link")); }), HasSubstr("symbolic link"));
    EXPECT_THAT(refusal([&] { (void)read_key_file(directory_); }), HasSubstr("no regular file"));
    ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
    EXPECT_THAT(refusal([&] { (void)read_key_file(path("pipe")); }), HasSubstr("no regular file"));
    EXPECT_THAT(refusal([&] { (void)read_key_file(path("nothing")); }), HasSubstr("keygen"));
}

TEST_F(Keys, ThatAreNoneAreRefused) {
    for (const std::string& text : {std::string(), std::string("short"), key + "\n" + key,
                                    std::string(5000, 'a'), key + std::string(1, '\0') + "b"}) {
        const std::string file = write("key", text);
        EXPECT_THAT(refusal([&] { (void)read_key_file(file); }), HasSubstr("keygen"));
    }
    EXPECT_EQ(read_key_file(write("key", key + " \n\n")), key);
}

TEST_F(Keys, ComeFromTheEnvironment) {
    EXPECT_EQ(key_of_environment(), "");
    ::setenv("CPP_STORE_KEY_FILE", write("key", key).c_str(), 1);
    EXPECT_EQ(key_of_environment(), key);
    ::setenv("CPP_STORE_KEY", std::string(20, 'b').c_str(), 1);
    EXPECT_EQ(key_of_environment(), std::string(20, 'b'));
    ::setenv("CPP_STORE_KEY", "short", 1);
    EXPECT_THAT(refusal([] { (void)key_of_environment(); }), HasSubstr("can be guessed"));
}

class UsersKey : public Keys {
  protected:
    UsersKey() {
        ::chmod(directory_.c_str(), 0700);
        ::setenv("XDG_RUNTIME_DIR", directory_.c_str(), 1);
    }
    ~UsersKey() override { ::unsetenv("XDG_RUNTIME_DIR"); }

    const std::string near = "ofi+tcp://127.0.0.1:0";
    const std::string far = "ofi+tcp://10.1.2.3:0";
};

TEST_F(UsersKey, IsMadeByAServerAndFoundByClients) {
    EXPECT_EQ(default_client_key({near}), "") << "no server has made one";
    const std::string made = default_server_key(near);
    EXPECT_EQ(made.size(), 64u);
    EXPECT_EQ(default_server_key("ofi+tcp://localhost:0"), made);
    EXPECT_EQ(default_client_key({near, near}), made);
    struct stat found {};
    ASSERT_EQ(::stat(path("cpp_store/key").c_str(), &found), 0);
    EXPECT_EQ(found.st_mode & 07777, 0600u);
    ASSERT_EQ(::stat(path("cpp_store").c_str(), &found), 0);
    EXPECT_EQ(found.st_mode & 07777, 0700u);
}

TEST_F(UsersKey, IsNoneForOtherHostsAndYieldsToTheEnvironment) {
    EXPECT_EQ(default_server_key(far), "");
    EXPECT_FALSE(fs::exists(path("cpp_store")));
    (void)default_server_key(near);
    EXPECT_EQ(default_client_key({near, far}), "");
    ::setenv("CPP_STORE_KEY", key.c_str(), 1);
    for (const std::string& address : {near, far}) {
        EXPECT_EQ(default_server_key(address), key);
        EXPECT_EQ(default_client_key({address}), key);
    }
    ::unsetenv("CPP_STORE_KEY");
}

TEST_F(UsersKey, IsOneHoweverManyServersStartAtOnce) {
    std::vector<std::string> keys(16);
    std::vector<std::thread> servers;
    servers.reserve(keys.size());
    for (std::string& each : keys) servers.emplace_back([&] { each = default_server_key(near); });
    for (std::thread& server : servers) server.join();
    EXPECT_THAT(keys, testing::Each(default_client_key({near})));
    EXPECT_EQ(std::distance(fs::directory_iterator(path("cpp_store")), {}), 1) << "something left";
}

TEST_F(UsersKey, IsNotLookedForInADirectoryOfOthers) {
    const auto is_refused = [&](const std::string& why) {
        for (const std::string& said : {refusal([&] { (void)default_server_key(near); }),
                                        refusal([&] { (void)default_client_key({near}); })}) {
            EXPECT_THAT(said, HasSubstr("CPP_STORE_KEY_FILE")) << why;
        }
    };
    const std::string directory = path("cpp_store");
    fs::create_directory(path("elsewhere"));
    ::chmod(path("elsewhere").c_str(), 0700);
    fs::create_symlink(path("elsewhere"), directory);
    is_refused("a link");
    fs::remove(directory);
    write("cpp_store", "");
    is_refused("a file");
    fs::remove(directory);
    fs::create_directory(directory);
    ::chmod(directory.c_str(), 0770);
    is_refused("its group's, too");
    ::chmod(directory.c_str(), 0700);
    if (::geteuid() != 0) GTEST_SKIP() << "only an administrator can give a directory away";
    ASSERT_EQ(::chown(directory.c_str(), 12345, 12345), 0);
    is_refused("of another user");
}

TEST_F(UsersKey, IsBelowTmpWithoutARuntimeDirectoryOfTheUser) {
    ::chmod(directory_.c_str(), 0777);  // whoever likes may rename what is in it
    (void)default_server_key(near);
    EXPECT_FALSE(fs::exists(path("cpp_store")));
    EXPECT_TRUE(fs::exists("/tmp/cpp_store-" + std::to_string(::geteuid()) + "/key"));
}

}  // namespace
}  // namespace cpp_store::security
