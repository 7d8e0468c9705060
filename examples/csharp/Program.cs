// Ask mm-serve without any package: dotnet run -- QUESTION. The reasoning comes as it is generated; Ctrl-C stops it.
// MINDMERGER_URL names another service than http://127.0.0.1:8017, MINDMERGER_API_KEY its key.
using System.Net.Http.Headers;
using System.Net.Http.Json;
using System.Text;
using System.Text.Json.Nodes;

if (args.Length == 0)
{
    Console.Error.WriteLine("usage: dotnet run -- QUESTION");
    return 2;
}

Console.OutputEncoding = Encoding.UTF8;
using var stop = new CancellationTokenSource();
Console.CancelKeyPress += (_, press) => { press.Cancel = true; stop.Cancel(); };
// An answer may take longer than the 100 seconds that HttpClient waits by itself.
using var client = new HttpClient { Timeout = Timeout.InfiniteTimeSpan };
client.BaseAddress = new Uri(Environment.GetEnvironmentVariable("MINDMERGER_URL") ?? "http://127.0.0.1:8017");
client.DefaultRequestHeaders.Authorization =
    new AuthenticationHeaderValue("Bearer", Environment.GetEnvironmentVariable("MINDMERGER_API_KEY") ?? "none");

try
{
    var models = await client.GetFromJsonAsync<JsonObject>("/v1/models", stop.Token);
    var body = new JsonObject
    {
        ["model"] = models!["data"]![0]!["id"]!.GetValue<string>(),
        ["stream"] = true,
        ["messages"] = new JsonArray(new JsonObject { ["role"] = "user", ["content"] = string.Join(' ', args) }),
    };
    using var request = new HttpRequestMessage(HttpMethod.Post, "/v1/chat/completions")
    {
        Content = new StringContent(body.ToJsonString(), Encoding.UTF8, "application/json"),
    };
    using var response = await client.SendAsync(request, HttpCompletionOption.ResponseHeadersRead, stop.Token);
    if (!response.IsSuccessStatusCode)
    {
        var refused = JsonNode.Parse(await response.Content.ReadAsStringAsync(stop.Token));
        throw new HttpRequestException(refused!["error"]!["message"]!.GetValue<string>());
    }

    using var lines = new StreamReader(await response.Content.ReadAsStreamAsync(stop.Token), Encoding.UTF8);
    string? answer = null;
    // Each event is a line `data: {…}`, the last one `data: [DONE]`.
    while (await lines.ReadLineAsync(stop.Token) is { } line)
    {
        if (!line.StartsWith("data: {")) continue;
        var happened = JsonNode.Parse(line["data: ".Length..])!;
        if (happened["error"] is { } error) throw new HttpRequestException(error["message"]!.GetValue<string>());
        if (happened["choices"] is JsonArray { Count: > 0 } choices)
            Console.Write(choices[0]!["delta"]!["content"]?.GetValue<string>());
        answer = happened["mindmerger"]?["answer"]?.GetValue<string>() ?? answer;
    }

    Console.WriteLine($"\nAnswer: {answer ?? "none"}");
    return 0;
}
catch (OperationCanceledException)
{
    return 130;
}
catch (HttpRequestException error)
{
    Console.Error.WriteLine($"ask: {error.Message}");
    return 1;
}
