package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kluis/authz"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

func TestErrorKinds(t *testing.T) {
	t.Parallel()
	kinds := []error{
		ErrUnavailable, ErrBusy, ErrInternal, ErrRefused, ErrTokenRefused, ErrSupplierRefused, ErrEvidence, ErrProfileMismatch,
		ErrUnknownEpoch, ErrKeyRecord, ErrStepRefused, ErrControlStale, ErrControlFork, ErrClockBehind, ErrErased, ErrDamaged, ErrSealRate, context.DeadlineExceeded, context.Canceled,
	}
	for _, c := range []struct {
		code   codes.Code
		reason cryptopb.Reason
		want   []error
	}{
		{codes.Unavailable, "", []error{ErrUnavailable}},
		{codes.Unavailable, cryptopb.ReasonTokenUnavailable, []error{ErrUnavailable}},
		{codes.Internal, cryptopb.ReasonInternal, []error{ErrInternal}},
		{codes.Unknown, "", []error{ErrInternal}},
		{codes.DeadlineExceeded, "", []error{context.DeadlineExceeded}},
		{codes.Canceled, "", []error{context.Canceled}},
		{codes.PermissionDenied, cryptopb.ReasonIdentityNotAllowed, []error{ErrRefused}},
		{codes.InvalidArgument, cryptopb.ReasonMalformed, []error{ErrRefused}},
		{codes.ResourceExhausted, "", []error{ErrRefused}},
		{codes.ResourceExhausted, cryptopb.ReasonTokenBusy, []error{ErrBusy, ErrUnavailable}},
		{codes.FailedPrecondition, cryptopb.ReasonRoleNotServed, []error{ErrRefused}},
		{codes.Unauthenticated, cryptopb.ReasonTokenInvalid, []error{ErrTokenRefused, ErrRefused}},
		{codes.PermissionDenied, cryptopb.ReasonSupplierInvalid, []error{ErrSupplierRefused, ErrRefused}},
		{codes.PermissionDenied, cryptopb.ReasonScope, []error{ErrSupplierRefused, ErrRefused}},
		{codes.FailedPrecondition, cryptopb.ReasonEvidenceInvalid, []error{ErrEvidence, ErrRefused}},
		{codes.FailedPrecondition, cryptopb.ReasonProfileMismatch, []error{ErrProfileMismatch, ErrRefused}},
		{codes.Unavailable, cryptopb.ReasonUnknownEpoch, []error{ErrUnknownEpoch, ErrUnavailable}},
		{codes.Unavailable, cryptopb.ReasonControlStale, []error{ErrControlStale, ErrUnavailable}},
		{codes.Unavailable, cryptopb.ReasonClockBehind, []error{ErrClockBehind, ErrUnavailable}},
		{codes.ResourceExhausted, cryptopb.ReasonSealRate, []error{ErrSealRate, ErrUnavailable}},
		{codes.ResourceExhausted, cryptopb.ReasonSealedTooOften, []error{ErrRefused}},
		{codes.FailedPrecondition, cryptopb.ReasonControlFork, []error{ErrControlFork, ErrRefused}},
		{codes.FailedPrecondition, cryptopb.ReasonKeyErased, []error{ErrErased, ErrRefused}},
		{codes.FailedPrecondition, cryptopb.ReasonNoEpoch, []error{ErrRefused}},
		{codes.FailedPrecondition, cryptopb.ReasonKeyRecordInvalid, []error{ErrKeyRecord, ErrRefused}},
		{codes.DataLoss, cryptopb.ReasonKeyRecordInvalid, []error{ErrKeyRecord, ErrRefused}},
		{codes.FailedPrecondition, cryptopb.ReasonStepRefused, []error{ErrStepRefused, ErrRefused}},
	} {
		st := status.New(c.code, "why")
		if c.reason != "" {
			var err error
			if st, err = st.WithDetails(&errdetails.ErrorInfo{Reason: string(c.reason), Domain: cryptopb.ReasonDomain}); err != nil {
				t.Fatal(err)
			}
		}
		err := fromGRPC(st.Err())
		for _, k := range kinds {
			if errors.Is(err, k) != slices.Contains(c.want, k) {
				t.Errorf("%s %s: is %v: %v", c.code, c.reason, k, errors.Is(err, k))
			}
		}
		var e *Error
		if !errors.As(err, &e) || e.Reason != c.reason {
			t.Errorf("%s %s: reason %q", c.code, c.reason, e.Reason)
		}
	}
	if fromGRPC(nil) != nil {
		t.Error("no error became one")
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	good := func() *tls.Config {
		return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: x509.NewCertPool(), Certificates: make([]tls.Certificate, 1)}
	}
	c, err := New(Config{Addresses: []string{"127.0.0.1:1", "[::1]:1"}, TLS: good()})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Config){
		"no address":         func(c *Config) { c.Addresses = nil },
		"no port":            func(c *Config) { c.Addresses = []string{"127.0.0.1"} },
		"no host":            func(c *Config) { c.Addresses = []string{":1"} },
		"no TLS":             func(c *Config) { c.TLS = nil },
		"TLS 1.2":            func(c *Config) { c.TLS.MinVersion = tls.VersionTLS12 },
		"system authorities": func(c *Config) { c.TLS.RootCAs = nil },
		"no certificate":     func(c *Config) { c.TLS.Certificates = nil },
		"unverified":         func(c *Config) { c.TLS.InsecureSkipVerify = true },
	} {
		conf := Config{Addresses: []string{"127.0.0.1:1"}, TLS: good()}
		change(&conf)
		if _, err := New(conf); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestOpenedChecksTheAnswer: a receipt goes into the access log verbatim, so an
// answer of something else is not taken.
func TestOpenedChecksTheAnswer(t *testing.T) {
	t.Parallel()
	ean, err := meter.ParseEAN("871685900000000004")
	if err != nil {
		t.Fatal(err)
	}
	other, err := meter.ParseEAN("871685900000000011")
	if err != nil {
		t.Fatal(err)
	}
	gln, err := meter.ParseGLN("8712345000004")
	if err != nil {
		t.Fatal(err)
	}
	receipt := envelope.Receipt{
		ServerID: "cs1", Sequence: 1, At: time.Unix(1718445600, 0).UTC(), InteractionID: [16]byte{1}, Supplier: gln, EAN: ean,
		Purpose: meter.Billing, FileVersion: 1,
	}
	asked := &Unit{InteractionID: [16]byte{1}, Request: authz.Request{EAN: ean}, Blocks: make([]envelope.SealedBlock, 1)}
	good := func() *cryptopb.OpenedUnit {
		return &cryptopb.OpenedUnit{Status: cryptopb.UnitStatus_UNIT_STATUS_OK, Receipt: receipt.Encode()}
	}
	if _, err := opened(good(), asked, new([]meter.SeriesDay)); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*cryptopb.OpenedUnit){
		"no status":  func(u *cryptopb.OpenedUnit) { u.Status = 0 },
		"no receipt": func(u *cryptopb.OpenedUnit) { u.Receipt = nil },
		"receipt of another metering point": func(u *cryptopb.OpenedUnit) {
			r := receipt
			r.EAN = other
			u.Receipt = r.Encode()
		},
		"receipt of another interaction": func(u *cryptopb.OpenedUnit) {
			r := receipt
			r.InteractionID[0]++
			u.Receipt = r.Encode()
		},
		"a day that is not there": func(u *cryptopb.OpenedUnit) { u.Series = []*cryptopb.Series{{Field: 1, Days: 1}} },
		"a block that was not sent": func(u *cryptopb.OpenedUnit) {
			u.Faults = []*cryptopb.ItemFault{{Block: 1, Fault: cryptopb.Fault_FAULT_DAMAGED}}
		},
	} {
		u := good()
		change(u)
		if _, err := opened(u, asked, new([]meter.SeriesDay)); !errors.Is(err, ErrInternal) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
