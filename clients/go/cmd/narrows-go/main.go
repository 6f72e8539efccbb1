// Command narrows-go asks a Narrows server: search, stream, encode, check.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	pb "narrows/gen/narrows/v1"
	"narrows/retrieval"
)

const usage = `usage: narrows-go COMMAND [OPTION...] [TEXT...]

  search QUESTION...   one call: the best passages of each question
  stream [QUESTION...] one stream: answers in the order in which they are ready (no QUESTION: one a line from stdin)
  encode TEXT...       embeddings, one JSON object a line
  check [QUESTION...]  try everything against a server; one JSON report, exit status 1 if any check failed

  --server HOST:PORT   default: 127.0.0.1:50051
  -k N                 passages for each question (default: 5)
  --corpus NAME        name of the index (default: the only one)
  --timeout S          deadline in seconds of a call, or of each request of a stream (default: 10)
  --json               search, stream: one JSON object a question
  --passages           encode: the texts are passages, TITLE<tab>TEXT or TEXT alone
  --dtype TYPE         encode: float32 or float16 on the wire (default: float32)
  --overload           check: also send more than the queue holds, which delays everyone else

example: narrows-go search "who discovered penicillin?" -k 3
`

type options struct {
	server, corpus, dtype    string
	k                        uint
	timeout                  time.Duration
	json, passages, overload bool
}

// usageError is a mistake on the command line.
type usageError struct{ error }

// Exit status: 0 done, 1 an expected failure, 2 bad usage.
func main() {
	status, err := run(os.Args[1:])
	var mistaken usageError
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(usage)
	case errors.As(err, &mistaken):
		fmt.Fprintf(os.Stderr, "narrows-go: %v\n\n%s", err, usage)
		status = 2
	case err != nil:
		fmt.Fprintf(os.Stderr, "narrows-go: %v\n", err)
		status = 1
	}
	os.Exit(status)
}

func run(arguments []string) (int, error) {
	command, texts, chosen, err := parse(arguments)
	if err != nil {
		return 0, err
	}
	if command == "check" {
		if len(texts) == 0 {
			texts = []string{"who discovered penicillin?", "which river flows through Vienna?"}
		}
		found, err := runChecks(chosen.server, texts, uint32(chosen.k), chosen.overload)
		if err != nil {
			return 0, err
		}
		printed, _ := json.MarshalIndent(found, "", " ")
		fmt.Println(string(printed))
		if !found.Passed {
			return 1, nil
		}
		return 0, nil
	}
	client, err := retrieval.Dial(chosen.server)
	if err != nil {
		return 0, err
	}
	defer client.Close()
	switch command {
	case "search":
		return 0, search(client, texts, chosen)
	case "stream":
		return stream(client, texts, chosen)
	default:
		return 0, encode(client, texts, chosen)
	}
}

func parse(arguments []string) (command string, texts []string, chosen options, err error) {
	flags := flag.NewFlagSet("narrows-go", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&chosen.server, "server", "127.0.0.1:50051", "")
	flags.UintVar(&chosen.k, "k", 5, "")
	flags.StringVar(&chosen.corpus, "corpus", "", "")
	seconds := flags.Float64("timeout", 10, "")
	flags.BoolVar(&chosen.json, "json", false, "")
	flags.BoolVar(&chosen.passages, "passages", false, "")
	flags.StringVar(&chosen.dtype, "dtype", "float32", "")
	flags.BoolVar(&chosen.overload, "overload", false, "")
	// Package flag stops at the first text; options may follow it all the same.
	for rest := arguments; ; {
		if err := flags.Parse(rest); errors.Is(err, flag.ErrHelp) {
			return "", nil, chosen, err
		} else if err != nil {
			return "", nil, chosen, usageError{err}
		}
		if flags.NArg() == 0 {
			break
		}
		parsed := len(rest) - flags.NArg()
		if parsed > 0 && rest[parsed-1] == "--" {
			texts = append(texts, flags.Args()...)
			break
		}
		texts, rest = append(texts, flags.Arg(0)), flags.Args()[1:]
	}
	if len(texts) > 0 {
		command, texts = texts[0], texts[1:]
	}
	chosen.timeout = time.Duration(*seconds * float64(time.Second))
	switch {
	case !strings.Contains(" search stream encode check ", " "+command+" "):
		err = usageError{fmt.Errorf("no such command: %s", command)}
	case len(texts) == 0 && (command == "search" || command == "encode"):
		err = usageError{fmt.Errorf("%s needs a TEXT", command)}
	case chosen.k < 1:
		err = usageError{errors.New("-k must be a whole number from 1")}
	case chosen.timeout < time.Millisecond:
		err = usageError{errors.New("--timeout must be a number of seconds")}
	case chosen.dtype != "float32" && chosen.dtype != "float16":
		err = usageError{errors.New("--dtype: float32 or float16")}
	}
	return command, texts, chosen, err
}

type hit struct {
	ID    string  `json:"id"`
	Title string  `json:"title"`
	Text  string  `json:"text"`
	Score float64 `json:"score"` // a float32, so that every language prints the same digits
}

// answer is what --json prints for one question.
type answer struct {
	RequestID string `json:"request_id,omitempty"`
	Question  string `json:"question"`
	Hits      []hit  `json:"hits,omitempty"`
	Error     seen   `json:"error,omitempty"`
}

func hitsOf(list *pb.HitList) []hit {
	hits := make([]hit, len(list.Hits))
	for i, found := range list.Hits {
		p := found.Passage
		hits[i] = hit{p.Id, p.Title, p.Text, float64(found.Score)}
	}
	return hits
}

func (a answer) print(asJSON bool) {
	if asJSON {
		printJSON(a)
		return
	}
	fmt.Printf("\n%s\n", a.Question)
	for i, hit := range a.Hits {
		title := hit.Title
		if title == "" {
			title = hit.ID
		}
		fmt.Printf("%3d. %8.3f  %s  [%s]\n      %.100s\n", i+1, hit.Score, title, hit.ID, hit.Text)
	}
	if a.Error != nil {
		fmt.Printf("      %v: %v\n", a.Error["code"], a.Error["message"])
	}
}

func printJSON(value interface{}) {
	line, _ := json.Marshal(value)
	fmt.Println(string(line))
}

func search(client *retrieval.Client, questions []string, chosen options) error {
	ctx, cancel := context.WithTimeout(context.Background(), chosen.timeout)
	defer cancel()
	request := &pb.SearchRequest{Questions: questions, K: uint32(chosen.k), Corpus: chosen.corpus}
	reply, err := client.Search(ctx, request)
	if err != nil {
		return err
	}
	for i, list := range reply.Results {
		answer{Question: questions[i], Hits: hitsOf(list)}.print(chosen.json)
	}
	return nil
}

// stream returns 1 when a request failed; the others are answered all the same.
func stream(client *retrieval.Client, given []string, chosen options) (int, error) {
	next := lines(given)
	var asked sync.Map // questions by request id, until they are answered: sent and received by two goroutines
	number := 0
	send := func() *pb.SearchStreamRequest {
		question, more := next()
		if !more {
			return nil
		}
		id := strconv.Itoa(number)
		number++
		asked.Store(id, question)
		request := &pb.SearchRequest{Questions: []string{question}, K: uint32(chosen.k), Corpus: chosen.corpus}
		return &pb.SearchStreamRequest{RequestId: id, Search: request, TimeoutMs: uint32(chosen.timeout.Milliseconds())}
	}
	status := 0
	err := client.SearchAll(context.Background(), send, func(response *pb.SearchStreamResponse) error {
		question, _ := asked.LoadAndDelete(response.RequestId)
		shown := answer{RequestID: response.RequestId, Question: fmt.Sprint(question)}
		switch outcome := response.Outcome.(type) {
		case *pb.SearchStreamResponse_Result:
			shown.Hits = hitsOf(outcome.Result.Results[0])
		case *pb.SearchStreamResponse_Error:
			shown.Error, status = described(retrieval.OfItem(outcome.Error)), 1
		}
		shown.print(chosen.json)
		return nil
	})
	return status, err
}

// lines returns the given texts one by one, or the lines of stdin where there are none.
func lines(given []string) func() (string, bool) {
	if len(given) == 0 {
		scanner := bufio.NewScanner(os.Stdin)
		return func() (string, bool) {
			more := scanner.Scan()
			return scanner.Text(), more
		}
	}
	return func() (line string, more bool) {
		if len(given) == 0 {
			return "", false
		}
		line, given = given[0], given[1:]
		return line, true
	}
}

func encode(client *retrieval.Client, texts []string, chosen options) error {
	ctx, cancel := context.WithTimeout(context.Background(), chosen.timeout)
	defer cancel()
	request := &pb.EncodeRequest{Dtype: pb.DataType_DATA_TYPE_FLOAT32}
	if chosen.dtype == "float16" {
		request.Dtype = pb.DataType_DATA_TYPE_FLOAT16
	}
	if chosen.passages {
		for _, text := range texts {
			passage := &pb.Passage{Text: text}
			if title, rest, both := strings.Cut(text, "\t"); both {
				passage = &pb.Passage{Title: title, Text: rest}
			}
			request.Passages = append(request.Passages, passage)
		}
	} else {
		request.Questions = texts
	}
	reply, err := client.Encode(ctx, request)
	if err != nil {
		return err
	}
	rows, err := retrieval.Rows(reply.Embeddings)
	if err != nil {
		return err
	}
	for i, row := range rows {
		exact := make([]float64, len(row))
		for column, value := range row {
			exact[column] = float64(value)
		}
		printJSON(seen{"text": texts[i], "token_count": reply.TokenCounts[i], "embedding": exact})
	}
	return nil
}
