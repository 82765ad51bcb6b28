package server

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"kluis/openapi"
)

// The code and the contract list the same problems with the same status, and
// the contract's advice on retrying is what the code says with Retry-After.
func TestProblemsAreTheContracts(t *testing.T) {
	t.Parallel()
	doc, err := openapi.Load()
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\| ([0-9]+) \\|.*\\| ([^|]+) \\|$").FindAllStringSubmatch(doc.Info.Description, -1) {
		want = append(want, fmt.Sprint(m[1], " ", m[2], " ", strings.HasPrefix(m[3], "yes")))
	}
	var got []string
	for _, p := range problems {
		got = append(got, fmt.Sprint(p.slug, " ", p.status, " ", p.retryAfter > 0))
		if !openapi.ProblemType(problemPrefix + p.slug).Valid() {
			t.Errorf("%s is not in the contract's enumeration", p.slug)
		}
		if p.title == "" || p.detail == "" {
			t.Errorf("%s says nothing", p.slug)
		}
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("in the code\n%s\nin the contract\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// tardy is a context whose timer has not fired yet.
type tardy struct{ context.Context }

func (tardy) Err() error { return nil }

func TestAsFailure(t *testing.T) {
	t.Parallel()
	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	cause := errors.New("cause")
	for name, tc := range map[string]struct {
		ctx  context.Context
		err  error
		want *problemKind
	}{
		"plain error":          {t.Context(), cause, internalError},
		"its own":              {t.Context(), fail(databaseUnavailable, cause), databaseUnavailable},
		"wrapped":              {t.Context(), fmt.Errorf("more: %w", fail(recordNotWritten, cause)), recordNotWritten},
		"late":                 {late, fail(databaseUnavailable, cause), deadlineExceeded},
		"late, plain":          {late, cause, deadlineExceeded},
		"its timer is late":    {tardy{late}, cause, deadlineExceeded},
		"late, but not for it": {late, fail(meteringPointNotFound, cause), meteringPointNotFound},
	} {
		f := asFailure(tc.ctx, tc.err)
		if f.kind != tc.want || !errors.Is(f, cause) {
			t.Errorf("%s: %s (%v), want %s", name, f.kind.slug, f.cause, tc.want.slug)
		}
	}
}

// Every route is an operation of the contract and the other way about, with
// the same parameters and the same want of a token.
func TestRoutesAreTheContracts(t *testing.T) {
	t.Parallel()
	doc, err := openapi.Load()
	if err != nil {
		t.Fatal(err)
	}
	left := map[string]bool{}
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			left[method+" "+path] = true
		}
	}
	for _, rt := range routes {
		item := doc.Paths.Value(rt.path)
		if item == nil || item.GetOperation(rt.method) == nil {
			t.Errorf("%s %s is not in the contract", rt.method, rt.path)
			continue
		}
		op := item.GetOperation(rt.method)
		delete(left, rt.method+" "+rt.path)
		var query []string
		for _, p := range op.Parameters {
			if p.Value.In == "query" {
				query = append(query, p.Value.Name)
			}
		}
		if strings.Join(query, " ") != strings.Join(rt.query, " ") {
			t.Errorf("%s takes %q, the contract says %q", rt.path, rt.query, query)
		}
		if wants := op.Security == nil; wants != rt.token {
			t.Errorf("%s wants a token: %v, the contract says %v", rt.path, rt.token, wants)
		}
		for status := range op.Responses.Map() {
			if n, err := strconv.Atoi(status); err != nil || n < 200 {
				t.Errorf("%s: answer %q", rt.path, status)
			}
		}
	}
	for op := range left {
		t.Errorf("%s is not served", op)
	}
}
