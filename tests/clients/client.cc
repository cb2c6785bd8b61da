// Stubs of gRPC C++ with the published retry policy as a client of the matrix: see matrix.py.
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <thread>

#include <grpcpp/grpcpp.h>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "tidewall/v1/operator.grpc.pb.h"
#include "tidewall/v1/ticket.grpc.pb.h"

namespace v1 = tidewall::v1;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using std::chrono::system_clock;

static std::string env(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

static void check(bool holds, const std::string& what) {
  if (!holds) {
    std::cerr << what << std::endl;
    std::exit(1);
  }
}

static std::shared_ptr<grpc::Channel> channel() {
  std::ifstream file(env("ROOT") + "/proto/service-config.json");
  std::stringstream config;
  config << file.rdbuf();
  grpc::ChannelArguments arguments;
  arguments.SetString("grpc.default_authority", "tidewall");
  arguments.SetLoadBalancingPolicyName("round_robin");
  arguments.SetServiceConfigJSON(config.str());
  arguments.SetInt("grpc.initial_reconnect_backoff_ms", 100);
  arguments.SetInt("grpc.min_reconnect_backoff_ms", 100);
  arguments.SetInt("grpc.max_reconnect_backoff_ms", 1000);
  return grpc::CreateCustomChannel("ipv4:" + env("GATEWAYS"), grpc::InsecureChannelCredentials(), arguments);
}

// A UUID of version 7: see docs/API.md.
static std::string request_id() {
  static std::mt19937_64 random(std::random_device{}());
  uint64_t ms = std::chrono::duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count();
  uint64_t high = ms << 16 | 0x7000 | (random() & 0xfff);
  uint64_t low = (random() & 0x3fffffffffffffff) | 0x8000000000000000;
  char text[37];
  std::snprintf(text, sizeof text, "%08x-%04x-%04x-%04x-%012llx", unsigned(high >> 32), unsigned(high >> 16 & 0xffff),
                unsigned(high & 0xffff), unsigned(low >> 48), (unsigned long long)(low & 0xffffffffffff));
  return text;
}

static v1::BuyTicketsRequest request(const std::string& tier = "ga") {
  v1::BuyTicketsRequest message;
  message.set_parent(env("EVENT"));
  message.set_tier_id(tier);
  message.set_quantity(1);
  message.set_request_id(request_id());
  return message;
}

static grpc::Status buy(v1::TicketService::Stub& tickets, const v1::BuyTicketsRequest& message, v1::BuyTicketsResponse* answer,
                        milliseconds timeout = milliseconds(10000), grpc_compression_algorithm algorithm = GRPC_COMPRESS_NONE) {
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer " + env("TOKEN"));
  if (timeout.count() > 0) context.set_deadline(system_clock::now() + timeout);
  context.set_compression_algorithm(algorithm);
  return tickets.BuyTickets(&context, message, answer);
}

int main(int, char** argv) {
  auto connection = channel();
  auto tickets = v1::TicketService::NewStub(connection);
  v1::BuyTicketsResponse answer;
  std::map<std::string, std::function<void()>> features;
  features["unary"] = [&] {
    auto same = request();
    v1::BuyTicketsResponse again;
    check(buy(*tickets, same, &answer).ok() && buy(*tickets, same, &again).ok(), "a purchase failed");
    check(answer.SerializeAsString() == again.SerializeAsString(), "a copy got another answer");
  };
  features["stream"] = [&] {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + env("OPERATOR_TOKEN"));
    context.set_deadline(system_clock::now() + std::chrono::seconds(20));
    v1::ExportRegionRequest message;
    message.set_name(env("REGION"));
    v1::ExportRegionResponse part;
    size_t bytes = 0;
    auto reader = v1::OperatorService::NewStub(connection)->ExportRegion(&context, message);
    while (reader->Read(&part)) bytes += part.chunk().size();
    check(reader->Finish().ok() && bytes > 1000, "the export has too few bytes");
  };
  features["compression"] = [&] {
    for (auto algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE}) {
      auto status = buy(*tickets, request(), &answer, milliseconds(10000), algorithm);
      check(status.ok(), status.error_message());
    }
  };
  features["deadline"] = [&] {
    auto late = buy(*tickets, request(), &answer, milliseconds(1));
    check(late.error_code() == grpc::DEADLINE_EXCEEDED, "not late: " + late.error_message());
    auto without = buy(*tickets, request(), &answer, milliseconds(0));
    check(without.error_code() == grpc::INVALID_ARGUMENT, "without a deadline: " + without.error_message());
  };
  features["errors"] = [&] {
    google::rpc::Status details;
    google::rpc::ErrorInfo info;
    check(details.ParseFromString(buy(*tickets, request("nope"), &answer).error_details()), "no details");
    check(details.details(0).UnpackTo(&info) && info.reason() == "TIER_NOT_FOUND", info.reason());
  };
  features["sale"] = [&] {
    auto end = steady_clock::now() + milliseconds(int(1000 * std::stod(env("SECONDS_LONG"))));
    while (steady_clock::now() < end) {
      auto status = buy(*tickets, request(), &answer);
      check(status.ok(), status.error_message());
      std::cout << answer.purchase().tickets(0) << std::endl;
      std::this_thread::sleep_for(milliseconds(50));
    }
  };
  features.at(argv[1])();
}
