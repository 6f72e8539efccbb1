// Package retrieval is a client of narrows.v1.RetrievalService: deadlines, typed errors, streams.
package retrieval

import (
	"context"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	pb "narrows/gen/narrows/v1"
)

// DefaultTimeout is the deadline of a unary call whose context has none.
const DefaultTimeout = 10 * time.Second

// gRPC's own limit on a reply is 4 MiB, and an operator may let the server send more.
const maxReplyBytes = 64 << 20

// gRPC retries by itself what this names (before grpc-go 1.40 only with GRPC_GO_RETRY=on in the environment).
// UNAVAILABLE: the server is not there (yet), or is shutting down. RESOURCE_EXHAUSTED: overload; the server says when
// to come back (grpc-retry-pushback-ms) and gRPC waits that long.
const serviceConfig = `{
  "methodConfig": [{
    "name": [{"service": "narrows.v1.RetrievalService"}],
    "retryPolicy": {
      "maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "2s", "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
    }
  }]
}`

// Client is a connection to one server. Its unary methods fail with an *Error. It may be used from many goroutines.
type Client struct {
	pb.RetrievalServiceClient
	conn *grpc.ClientConn
}

// Dial returns at once: the connection is made by the first call. The options come after, and so override, its own.
func Dial(address string, options ...grpc.DialOption) (*Client, error) {
	own := []grpc.DialOption{
		grpc.WithInsecure(), // newer: grpc.WithTransportCredentials(insecure.NewCredentials())
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReplyBytes)),
		grpc.WithUnaryInterceptor(withDeadlineAndTypedErrors),
	}
	conn, err := grpc.Dial(address, append(own, options...)...)
	if err != nil {
		return nil, err
	}
	return &Client{pb.NewRetrievalServiceClient(conn), conn}, nil
}

// Close ends the connection, and the calls on it.
func (c *Client) Close() error { return c.conn.Close() }

// SearchAll sends what next returns, until nil, as fast as the server takes it; half-closes; and hands each answer to
// answer in the order in which they are ready: match them by RequestId. A request's failure is its answer; only a
// failure of the whole stream is returned. A deadline in ctx would cover the whole stream, so requests carry
// TimeoutMs. next is called from another goroutine; an error from answer ends the call and is returned.
func (c *Client) SearchAll(
	ctx context.Context, next func() *pb.SearchStreamRequest, answer func(*pb.SearchStreamResponse) error,
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.SearchStream(ctx)
	if err != nil {
		return ofCall(err, nil)
	}
	go func() {
		for request := next(); request != nil; request = next() {
			if stream.Send(request) != nil {
				return // Recv says why
			}
		}
		_ = stream.CloseSend()
	}()
	for {
		response, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return ofCall(err, stream.Trailer())
		}
		if err := answer(response); err != nil {
			return err
		}
	}
}

func withDeadlineAndTypedErrors(
	ctx context.Context, method string, request, reply interface{},
	conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption,
) error {
	if _, set := ctx.Deadline(); !set {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, DefaultTimeout)
		defer cancel()
	}
	var trailer metadata.MD
	err := invoke(ctx, method, request, reply, conn, append(options, grpc.Trailer(&trailer))...)
	return ofCall(err, trailer)
}
