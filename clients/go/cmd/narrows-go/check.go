package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	pb "narrows/gen/narrows/v1"
	"narrows/retrieval"
)

// Scores may differ in their last digits where the index was filled on another machine.
const tolerance = 1e-4

type check struct {
	Name   string `json:"name"`
	Passed bool   `json:"passed"`
	// Why it failed; empty where it passed.
	Message string `json:"message"`
	// What the server answered.
	Seen interface{} `json:"seen"`
}

type report struct {
	Client string  `json:"client"`
	Server string  `json:"server"`
	Passed bool    `json:"passed"`
	Checks []check `json:"checks"`
}

// checker tries everything that this client relies on against a running server.
type checker struct {
	server    string
	client    *retrieval.Client
	questions []string
	k         uint32
}

// seen is a JSON object.
type seen map[string]interface{}

type step struct {
	name string
	run  func(context.Context) (seen, error)
}

// runChecks runs every check, whatever fails, and reports; only the first one where no server answers. Overload delays
// everyone who uses the server.
func runChecks(server string, questions []string, k uint32, overload bool) (report, error) {
	client, err := retrieval.Dial(server)
	if err != nil {
		return report{}, err
	}
	defer client.Close()
	c := checker{server, client, questions, k}
	steps := []step{
		{"server_info", c.serverInfo},
		{"search", c.search},
		{"search_stream", c.searchStream},
		{"inner_product", c.scoreIsInnerProduct},
		{"float16", c.halfPrecision},
		{"deadline", c.deadline},
		{"errors", c.errors},
		{"receive_limit", c.receiveLimit},
	}
	if overload {
		steps = append(steps, step{"overload", c.overload})
	}
	result := report{Client: "go", Server: server, Passed: true}
	for _, each := range steps {
		found, err := each.run(context.Background())
		done := check{Name: each.name, Passed: err == nil, Seen: found}
		if err != nil {
			done.Message, result.Passed = err.Error(), false
		}
		result.Checks = append(result.Checks, done)
		if !result.Checks[0].Passed {
			break
		}
	}
	return result, nil
}

// failure returns the error that a call must have ended with.
func failure(err error, code codes.Code) (*retrieval.Error, error) {
	var failed *retrieval.Error
	if errors.As(err, &failed) && failed.Code == code {
		return failed, nil
	}
	return nil, fmt.Errorf("expected %v, not %v", code, err)
}

// described is an error as the reports hold it.
func described(e *retrieval.Error) seen {
	var retryAfterMs interface{}
	if e.Reason == retrieval.Overloaded {
		retryAfterMs = e.RetryAfter.Milliseconds()
	}
	return seen{
		"code": e.CodeName(), "reason": e.Reason, "field": e.Field, "message": e.Message,
		"retry_after_ms": retryAfterMs,
	}
}

type scoredID struct {
	ID    string  `json:"id"`
	Score float64 `json:"score"` // a float32, so that every language prints the same digits
}

func scored(list *pb.HitList) []scoredID {
	hits := make([]scoredID, len(list.Hits))
	for i, hit := range list.Hits {
		hits[i] = scoredID{hit.Passage.Id, float64(hit.Score)}
	}
	return hits
}

func (c checker) ask(questions ...string) *pb.SearchRequest {
	return &pb.SearchRequest{Questions: questions, K: c.k, View: pb.PassageView_PASSAGE_VIEW_ID}
}

func (c checker) serverInfo(ctx context.Context) (seen, error) {
	info, err := c.client.GetServerInfo(ctx, &pb.GetServerInfoRequest{})
	if err != nil {
		return nil, err
	}
	if info.Dim == 0 || info.Limits == nil || info.Served == nil {
		return nil, errors.New("the server states no dimensions or no limits")
	}
	return seen{
		"bundle": info.Served.Bundle, "dim": info.Dim, "passage_count": info.PassageCount, "max_k": info.Limits.MaxK,
	}, nil
}

func (c checker) search(ctx context.Context) (seen, error) {
	reply, err := c.client.Search(ctx, c.ask(c.questions...))
	if err != nil {
		return nil, err
	}
	if len(reply.Results) != len(c.questions) {
		return nil, fmt.Errorf("%d questions, %d results", len(c.questions), len(reply.Results))
	}
	results := make([][]scoredID, len(reply.Results))
	for i, list := range reply.Results {
		results[i] = scored(list)
		if len(results[i]) == 0 || len(results[i]) > int(c.k) {
			return nil, fmt.Errorf("%d hits for k %d", len(results[i]), c.k)
		}
		for rank := 1; rank < len(results[i]); rank++ {
			if results[i][rank-1].Score < results[i][rank].Score {
				return nil, errors.New("hits out of order")
			}
		}
	}
	return seen{"results": results}, nil
}

// searchStream sends good requests with a bad one among them: each is answered once, as a unary call would.
func (c checker) searchStream(ctx context.Context) (seen, error) {
	var requests []*pb.SearchStreamRequest
	for i, question := range c.questions {
		if i == len(c.questions)/2 {
			requests = append(requests, &pb.SearchStreamRequest{RequestId: "bad", Search: c.ask("  ")})
		}
		requests = append(requests, &pb.SearchStreamRequest{RequestId: fmt.Sprint("q", i), Search: c.ask(question)})
	}
	sent := 0
	next := func() *pb.SearchStreamRequest {
		if sent == len(requests) {
			return nil
		}
		sent++
		return requests[sent-1]
	}
	answers := map[string][]scoredID{}
	failures := map[string]*retrieval.Error{}
	var order []string
	err := c.client.SearchAll(ctx, next, func(response *pb.SearchStreamResponse) error {
		order = append(order, response.RequestId)
		switch outcome := response.Outcome.(type) {
		case *pb.SearchStreamResponse_Result:
			answers[response.RequestId] = scored(outcome.Result.Results[0])
		case *pb.SearchStreamResponse_Error:
			failures[response.RequestId] = retrieval.OfItem(outcome.Error)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(order) != len(requests) || len(answers)+len(failures) != len(requests) {
		return nil, fmt.Errorf("%d requests, and the answers were to %v", len(requests), order)
	}
	bad := failures["bad"]
	if bad == nil || bad.Code != codes.InvalidArgument || len(failures) != 1 {
		return nil, fmt.Errorf("the errors were %v", failures)
	}
	unary, err := c.search(ctx)
	if err != nil {
		return nil, err
	}
	results := make([][]scoredID, len(c.questions))
	for i := range c.questions {
		results[i] = answers[fmt.Sprint("q", i)]
	}
	if !sameJSON(results, unary["results"]) {
		return nil, errors.New("the stream's answers are not those of a unary call")
	}
	return seen{"sent": len(requests), "order": order, "results": results, "bad": described(bad)}, nil
}

func sameJSON(a, b interface{}) bool {
	first, _ := json.Marshal(a)
	second, _ := json.Marshal(b)
	return string(first) == string(second)
}

// scoreIsInnerProduct: a hit's score is the inner product of the two embeddings.
func (c checker) scoreIsInnerProduct(ctx context.Context) (seen, error) {
	question := c.questions[0]
	found, err := c.client.Search(ctx, &pb.SearchRequest{Questions: []string{question}, K: 1})
	if err != nil {
		return nil, err
	}
	hit := found.Results[0].Hits[0]
	encoded, err := c.client.Encode(ctx, &pb.EncodeRequest{Questions: []string{question}, Passages: []*pb.Passage{hit.Passage}})
	if err != nil {
		return nil, err
	}
	rows, err := retrieval.Rows(encoded.Embeddings)
	if err != nil {
		return nil, err
	}
	product, score := float64(retrieval.InnerProduct(rows[0], rows[1])), float64(hit.Score)
	if math.Abs(product-score) > tolerance*math.Max(1, math.Abs(score)) {
		return nil, fmt.Errorf("inner product %v, score %v", product, score)
	}
	return seen{"id": hit.Passage.Id, "score": score, "inner_product": product}, nil
}

// halfPrecision: half-precision embeddings are the float32 ones, rounded.
func (c checker) halfPrecision(ctx context.Context) (seen, error) {
	var rows [2][][]float32
	for i, dtype := range []pb.DataType{pb.DataType_DATA_TYPE_FLOAT32, pb.DataType_DATA_TYPE_FLOAT16} {
		reply, err := c.client.Encode(ctx, &pb.EncodeRequest{Questions: c.questions, Dtype: dtype})
		if err != nil {
			return nil, err
		}
		if rows[i], err = retrieval.Rows(reply.Embeddings); err != nil {
			return nil, err
		}
	}
	full, half := rows[0], rows[1]
	if len(half) != len(c.questions) || len(half[0]) != len(full[0]) {
		return nil, errors.New("another shape than in float32")
	}
	largest := 0.0
	for row := range full {
		for column, value := range full[row] {
			difference := math.Abs(float64(value) - float64(half[row][column]))
			if difference > math.Abs(float64(value))*math.Ldexp(1, -11)+math.Ldexp(1, -25) {
				return nil, fmt.Errorf("row %d column %d: off by %v", row, column, difference)
			}
			largest = math.Max(largest, difference)
		}
	}
	return seen{"rows": len(half), "dim": len(half[0]), "largest_difference": largest}, nil
}

// deadline: a deadline that nobody can keep ends the call soon, and the next call is answered.
func (c checker) deadline(ctx context.Context) (seen, error) {
	started := time.Now()
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	_, err := c.client.Search(short, c.ask(c.questions...))
	failed, err := failure(err, codes.DeadlineExceeded)
	if err != nil {
		return nil, err
	}
	if waited := time.Since(started); waited > 2*time.Second {
		return nil, fmt.Errorf("a deadline of 1 ms took %v", waited)
	}
	if _, err := c.client.Search(ctx, c.ask(c.questions...)); err != nil {
		return nil, err
	}
	return described(failed), nil
}

// errors: each kind of refusal, with the reason and the field in the trailing metadata.
func (c checker) errors(ctx context.Context) (seen, error) {
	invalid, unknown, mismatch := c.ask(c.questions[0], " "), c.ask(c.questions[0]), c.ask(c.questions[0])
	unknown.Corpus, mismatch.ExpectedBundle = "no such corpus", "no such bundle"
	result := seen{}
	for _, refused := range []struct {
		name          string
		request       *pb.SearchRequest
		code          codes.Code
		reason, field string
	}{
		{"invalid", invalid, codes.InvalidArgument, "INVALID_FIELD", "questions[1]"},
		{"unknown", unknown, codes.NotFound, "UNKNOWN_CORPUS", ""},
		{"mismatch", mismatch, codes.FailedPrecondition, "OTHER_BUNDLE", ""},
	} {
		_, err := c.client.Search(ctx, refused.request)
		failed, err := failure(err, refused.code)
		if err != nil {
			return nil, err
		}
		if failed.Reason != refused.reason || failed.Field != refused.field {
			return nil, fmt.Errorf("reason %q and field %q with %v", failed.Reason, failed.Field, refused.code)
		}
		result[refused.name] = described(failed)
	}
	return result, nil
}

// receiveLimit: a reply over the client's own limit is RESOURCE_EXHAUSTED too, but without a reason: no overload.
func (c checker) receiveLimit(ctx context.Context) (seen, error) {
	_, err := c.client.Search(ctx, c.ask(c.questions[0]), grpc.MaxCallRecvMsgSize(16))
	failed, err := failure(err, codes.ResourceExhausted)
	if err != nil {
		return nil, err
	}
	if failed.Reason != "" {
		return nil, fmt.Errorf("reason %q", failed.Reason)
	}
	return described(failed), nil
}

// overload: more calls at once than the queue holds: some are refused and told when to come back; with retry, fewer.
func (c checker) overload(ctx context.Context) (seen, error) {
	info, err := c.client.GetServerInfo(ctx, &pb.GetServerInfoRequest{})
	if err != nil {
		return nil, err
	}
	items := math.Min(float64(info.Limits.MaxItems), 64)
	calls := int(math.Min(math.Max(8*math.Ceil(float64(info.Limits.MaxQueuedQuestions)/items), 64), 1024))
	long := strings.Repeat(c.questions[0]+" ", 1+1000/len(c.questions[0]))
	request := c.ask()
	for len(request.Questions) < int(items) {
		request.Questions = append(request.Questions, long)
	}
	refused, err := c.burst(ctx, calls, request, grpc.WithDisableRetry())
	if err != nil {
		return nil, err
	}
	if len(refused) == 0 {
		return nil, fmt.Errorf("%d calls at once, and none was refused", calls)
	}
	for _, failed := range refused {
		if failed.Reason != retrieval.Overloaded || failed.RetryAfter < time.Millisecond {
			return nil, failed
		}
	}
	refusedWithRetry, err := c.burst(ctx, calls, request)
	if err != nil {
		return nil, err
	}
	return seen{
		"calls": calls, "refused": len(refused), "refused_with_retry": len(refusedWithRetry), "first": described(refused[0]),
	}, nil
}

// burst makes so many calls at once and returns the errors of those that failed.
func (c checker) burst(
	ctx context.Context, calls int, request *pb.SearchRequest, options ...grpc.DialOption,
) ([]*retrieval.Error, error) {
	client, err := retrieval.Dial(c.server, options...)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var group sync.WaitGroup
	outcomes := make([]error, calls)
	for i := range outcomes {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			_, outcomes[i] = client.Search(ctx, request)
		}(i)
	}
	group.Wait()
	var refused []*retrieval.Error
	for _, err := range outcomes {
		var failed *retrieval.Error
		if errors.As(err, &failed) {
			refused = append(refused, failed)
		}
	}
	return refused, nil
}
