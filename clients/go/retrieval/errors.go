package retrieval

import (
	"fmt"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "narrows/gen/narrows/v1"
)

// Error is a failed call, or one failed request of a stream: the gRPC status, and what the server added to it.
type Error struct {
	Code    codes.Code
	Message string
	// Reason is a constant such as OVERLOADED. It is empty where the failure is not the server's own: no connection,
	// a deadline kept here, a message over gRPC's limit.
	Reason string
	// Field is the request field at fault, such as questions[3]; empty where none is.
	Field string
	// RetryAfter is when to try again; 0 where the server did not say.
	RetryAfter time.Duration
}

// Overloaded is the reason of a call that was refused because too many others wait.
const Overloaded = "OVERLOADED"

func (e *Error) Error() string {
	if e.Reason == "" {
		return fmt.Sprintf("%s: %s", e.CodeName(), e.Message)
	}
	return fmt.Sprintf("%s (%s): %s", e.CodeName(), e.Reason, e.Message)
}

// CodeName is the name that the gRPC specification gives the code; Go's own String() writes InvalidArgument.
func (e *Error) CodeName() string {
	if name, known := codeNames[e.Code]; known {
		return name
	}
	return e.Code.String()
}

var codeNames = map[codes.Code]string{
	codes.Canceled:           "CANCELLED",
	codes.Unknown:            "UNKNOWN",
	codes.InvalidArgument:    "INVALID_ARGUMENT",
	codes.DeadlineExceeded:   "DEADLINE_EXCEEDED",
	codes.NotFound:           "NOT_FOUND",
	codes.ResourceExhausted:  "RESOURCE_EXHAUSTED",
	codes.FailedPrecondition: "FAILED_PRECONDITION",
	codes.Unimplemented:      "UNIMPLEMENTED",
	codes.Internal:           "INTERNAL",
	codes.Unavailable:        "UNAVAILABLE",
}

// GRPCStatus lets status.Code(err) and status.FromError(err) see through.
func (e *Error) GRPCStatus() *status.Status { return status.New(e.Code, e.Message) }

// ofCall reads the trailing metadata of a failed call.
func ofCall(err error, trailer metadata.MD) error {
	if err == nil {
		return nil
	}
	first := func(key string) string {
		if values := trailer.Get(key); len(values) > 0 {
			return values[0]
		}
		return ""
	}
	s := status.Convert(err)
	pushback, _ := strconv.ParseInt(first("grpc-retry-pushback-ms"), 10, 64)
	return &Error{s.Code(), s.Message(), first("narrows-reason"), first("narrows-field"), milliseconds(pushback)}
}

// OfItem makes an Error of the answer to one request of a stream.
func OfItem(e *pb.ItemError) *Error {
	return &Error{codes.Code(e.Code), e.Message, e.Reason, e.Field, milliseconds(int64(e.RetryAfterMs))}
}

func milliseconds(count int64) time.Duration { return time.Duration(count) * time.Millisecond }
