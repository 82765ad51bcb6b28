package cryptoserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"kluis/cryptoserver/cryptopb"
)

// allowList says which client identities may call which method. What is not
// listed is denied. The gRPC health service is open to every identity that may
// call at least one method: a client that cannot see a server's health cannot
// leave it.
type allowList map[string]map[string]bool

func newAllowList(cfg map[string][]string) (allowList, error) {
	known := map[string]bool{}
	for _, m := range cryptopb.Cryptoserver_ServiceDesc.Methods {
		known[m.MethodName] = true
	}
	a := allowList{}
	for method, identities := range cfg {
		if !known[method] {
			return nil, fmt.Errorf("allow list names the unknown method %q", method)
		}
		for _, id := range identities {
			if id == "" || len(id) > 64 { // as a common name has (RFC 5280, appendix A.1); it goes into the journal
				return nil, fmt.Errorf("allow list of %s names an identity that is empty or longer than 64 bytes", method)
			}
			a.add("/"+cryptopb.Cryptoserver_ServiceDesc.ServiceName+"/"+method, id)
			for _, m := range healthpb.Health_ServiceDesc.Methods {
				a.add("/"+healthpb.Health_ServiceDesc.ServiceName+"/"+m.MethodName, id)
			}
			for _, m := range healthpb.Health_ServiceDesc.Streams {
				a.add("/"+healthpb.Health_ServiceDesc.ServiceName+"/"+m.StreamName, id)
			}
		}
	}
	return a, nil
}

func (a allowList) add(fullMethod, identity string) {
	if a[fullMethod] == nil {
		a[fullMethod] = map[string]bool{}
	}
	a[fullMethod][identity] = true
}

func (a allowList) allows(fullMethod, identity string) bool {
	return identity != "" && a[fullMethod][identity]
}

// known says whether anybody may call the method.
func (a allowList) known(fullMethod string) bool { return len(a[fullMethod]) > 0 }

// identityOf is the subject common name of the client certificate that the TLS
// handshake verified; "" when there is none.
func identityOf(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 || len(info.State.VerifiedChains[0]) == 0 {
		return ""
	}
	return info.State.VerifiedChains[0][0].Subject.CommonName
}

// call is what is known of the call being served; the handlers add counts.
type call struct {
	identity string
	units    int
	blocks   int
	refused  int
	damaged  int
}

type callKey struct{}

func callOf(ctx context.Context) *call {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c
	}
	return &call{}
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	start := s.now()
	c := &call{identity: identityOf(ctx)}
	method := methodName(info.FullMethod)
	defer func() {
		if p := recover(); p != nil {
			// The value may hold data, and so may the arguments in a printed stack.
			s.log.Error("panic in a call", "method", method, "type", fmt.Sprintf("%T", p), "stack", frames())
			resp, err = nil, refuse(codes.Internal, cryptopb.ReasonInternal, "internal error", nil)
		}
		s.finish(ctx, method, c, start, err)
		pushBack(ctx, err)
		err = public(err)
	}()
	ctx, cancel := context.WithTimeout(ctx, s.maxCall) // the earlier of the client's deadline and ours
	defer cancel()
	return handler(context.WithValue(ctx, callKey{}, c), req)
}

// pushBack tells gRPC clients when to repeat a call, where they would not know:
// of what is exhausted, the room in a token's queue is another on the next
// server, the sealing rate has room again soon, and anything else would only be
// used up further.
func pushBack(ctx context.Context, err error) {
	var r *refusal
	if !errors.As(err, &r) || r.code != codes.ResourceExhausted || r.reason == cryptopb.ReasonTokenBusy {
		return
	}
	ms := int64(-1)
	if r.later > 0 {
		ms = max(1, r.later.Milliseconds())
	}
	_ = grpc.SetTrailer(ctx, metadata.Pairs("grpc-retry-pushback-ms", strconv.FormatInt(ms, 10))) // fails outside of a call only
}

// unknownMethod stands for a name that the client made up: it labels metrics.
const unknownMethod = "unknown"

// admit is the allow-list. It runs on a call's headers, of unary calls and
// streams alike: whoever is refused has no message read or decoded, which
// could cost many times its size in memory.
func (s *Server) admit(ctx context.Context, info *tap.Info) (context.Context, error) {
	identity := identityOf(ctx)
	if s.allow.allows(info.FullMethodName, identity) {
		return ctx, nil
	}
	method := unknownMethod
	if s.allow.known(info.FullMethodName) {
		method = methodName(info.FullMethodName)
	}
	err := refuse(codes.PermissionDenied, cryptopb.ReasonIdentityNotAllowed,
		"this client identity is not on the server's allow-list for the method", nil)
	s.finish(ctx, method, &call{identity: identity}, s.now(), err)
	return ctx, public(err)
}

func methodName(full string) string { return full[strings.LastIndexByte(full, '/')+1:] }

// frames names the functions on the stack, without their arguments.
func frames() []string {
	pcs := make([]uintptr, 64)
	var list []string
	for more, all := true, runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)]); more; {
		var f runtime.Frame
		f, more = all.Next()
		list = append(list, fmt.Sprintf("%s:%d", f.Function, f.Line))
	}
	return list
}

// public makes sure that only what was meant for the client leaves.
func public(err error) error {
	if err == nil {
		return nil
	}
	var r *refusal
	if errors.As(err, &r) {
		return r.GRPCStatus().Err()
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return status.FromContextError(err).Err()
	}
	if st, ok := status.FromError(err); ok {
		return st.Err()
	}
	return refuse(codes.Internal, cryptopb.ReasonInternal, "internal error", nil).(*refusal).GRPCStatus().Err()
}

// finish writes the one log line of a call and counts it. No EAN, token,
// party or value is in either.
func (s *Server) finish(ctx context.Context, method string, c *call, start time.Time, err error) {
	code := status.Code(public(err))
	took := s.now().Sub(start)
	s.metrics.calls.WithLabelValues(method, code.String()).Inc()
	var refused *refusal
	if errors.As(err, &refused) {
		s.metrics.refusals.WithLabelValues(method, string(refused.reason)).Inc()
	}
	s.metrics.seconds.WithLabelValues(method).Observe(took.Seconds())
	level := slog.LevelInfo
	switch code {
	case codes.OK:
	case codes.Internal, codes.Unknown, codes.DataLoss, codes.Unavailable:
		level = slog.LevelError
	default:
		level = slog.LevelWarn
	}
	if !s.log.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 9)
	attrs = append(attrs,
		slog.String("method", method),
		slog.String("client", c.identity),
		slog.String("code", code.String()),
		slog.Duration("took", took),
		slog.Int("units", c.units),
		slog.Int("blocks", c.blocks),
		slog.Int("refused", c.refused),
		slog.Int("damaged", c.damaged),
	)
	if err != nil {
		attrs = append(attrs, slog.String("error", err.Error()))
	}
	s.log.LogAttrs(ctx, level, "call", attrs...)
}

// roles that a server can hold.
func (s *Server) roleNames() []string {
	var names []string
	for _, r := range allRoles {
		if s.health.holds(r) {
			names = append(names, string(r))
		}
	}
	slices.Sort(names)
	return names
}

func notServed(role Role) error {
	return refuse(codes.FailedPrecondition, cryptopb.ReasonRoleNotServed,
		"this server does not hold the role "+string(role)+": name its token in the configuration, or ask another server", nil)
}
