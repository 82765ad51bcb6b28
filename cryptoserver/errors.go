package cryptoserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/token"
)

// refusal is an error whose code and text go to the client, and whose cause,
// if any, goes to this process's log only. Texts and causes hold no personal
// data.
type refusal struct {
	code   codes.Code
	reason cryptopb.Reason
	text   string
	cause  error
	later  time.Duration // when to try again; 0: not said
}

func (r *refusal) Error() string {
	if r.cause != nil {
		return r.text + ": " + r.cause.Error()
	}
	return r.text
}

func (r *refusal) Unwrap() error { return r.cause }

// GRPCStatus carries the reason as google.rpc.ErrorInfo, so that clients need
// not read the text.
func (r *refusal) GRPCStatus() *status.Status {
	st := status.New(r.code, r.text)
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: string(r.reason), Domain: cryptopb.ReasonDomain}}
	if r.later > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(r.later)})
	}
	with, err := st.WithDetails(details...)
	if err != nil {
		return st
	}
	return with
}

func malformed(format string, args ...any) error {
	return &refusal{code: codes.InvalidArgument, reason: cryptopb.ReasonMalformed, text: fmt.Sprintf(format, args...)}
}

func refuse(code codes.Code, reason cryptopb.Reason, text string, cause error) error {
	return &refusal{code: code, reason: reason, text: text, cause: cause}
}

// tokenError says to the client whether another server may do better.
func (s *Server) tokenError(ctx context.Context, role Role, err error) error {
	switch {
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	case errors.Is(err, token.ErrBusy):
		// The token is well: its health stays as it is.
		return refuse(codes.ResourceExhausted, cryptopb.ReasonTokenBusy,
			"as many calls as may wait for the HSM token of role "+string(role)+" already: ask another server, or later", err)
	case errors.Is(err, token.ErrUnknownEpoch):
		// The token is well; another server's may have the KEK.
		return refuse(codes.Unavailable, cryptopb.ReasonUnknownEpoch,
			"the token of role "+string(role)+" has no KEK of the epoch that a data key names: import the KEK into this token, or ask another server", err)
	case errors.Is(err, token.ErrUnavailable):
		if !errors.Is(err, token.ErrBusy) {
			s.health.down(role, err)
		}
		return refuse(codes.Unavailable, cryptopb.ReasonTokenUnavailable, "the HSM token of role "+string(role)+" is not available", err)
	default:
		return refuse(codes.Internal, cryptopb.ReasonInternal, "the HSM token of role "+string(role)+" failed", err)
	}
}
