package e2e

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"kluis/openapi/client"
	"kluis/openapi/client/kluis"
)

// kluisClient is the client for suppliers, as one of them would open it.
func (w *world) kluisClient(t testing.TB, n int, change func(*kluis.Config)) *kluis.Client {
	t.Helper()
	s := w.ready.Suppliers[n]
	c := kluis.Config{
		Gateway: w.ready.GatewayURL, Issuer: w.ready.IssuerURL, ClientID: s.ClientID,
		CAFile: w.ready.CAFile, CertificateFile: s.CertificateFile, KeyFile: s.KeyFile,
	}
	if change != nil {
		change(&c)
	}
	k, err := kluis.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

// lastMonth is the last month that is over, of which the demo's suppliers may
// read what they bill by.
func lastMonth() (from, to time.Time) {
	now := time.Now()
	to = time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC)
	return to.AddDate(0, -1, 0), to
}

func billingOfLastMonth() client.ReadingsQuery {
	from, to := lastMonth()
	return client.ReadingsQuery{From: kluis.Date(from.Date()), To: kluis.Date(to.Date()), Purpose: client.PurposeBILLING}
}

// breaker is a way to a gateway that breaks connections after so many bytes of
// answers.
type breaker struct {
	net.Listener
	left   atomic.Int64 // breaks to come
	broken atomic.Int64
}

func newBreaker(t testing.TB, gatewayURL string, after, times int64) *breaker {
	t.Helper()
	target, err := url.Parse(gatewayURL)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &breaker{Listener: l}
	b.left.Store(times)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go b.serve(in, target.Host, after)
		}
	}()
	return b
}

func (b *breaker) url() string { return "https://" + b.Addr().String() }

func (b *breaker) serve(in net.Conn, target string, after int64) {
	defer in.Close()
	up, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer up.Close()
	go func() {
		_, _ = io.Copy(up, in)
		up.Close()
	}()
	if _, err := io.CopyN(in, up, after); err == nil && b.left.Add(-1) >= 0 {
		b.broken.Add(1)
		return
	}
	_, _ = io.Copy(in, up)
}

// The client for suppliers lists, reads, asks for a consent and is told what is
// wrong, as anybody would use it.
func TestClientForSuppliers(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	k := w.kluisClient(t, 0, nil)
	ctx := t.Context()
	from, to := lastMonth()

	var eans []string
	for p, err := range k.MeteringPoints(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		eans = append(eans, p.Ean)
	}
	if len(eans) < 5 || !slices.IsSorted(eans) {
		t.Fatalf("%d metering points", len(eans))
	}
	id := w.ready.Suppliers[0].ID
	mine := w.point(t, func(p readyPoint) bool {
		return slices.ContainsFunc(p.Access, func(a readyAccess) bool {
			return a.Supplier == id && a.Purpose == "BILLING" && a.Resolution == "P1M" && a.To >= to.Format(time.DateOnly)
		})
	})
	if !slices.Contains(eans, mine.EAN) {
		t.Errorf("%s is not listed", mine.EAN)
	}
	r, err := k.Readings(ctx, mine.EAN, &client.GetReadingsParams{From: kluis.Date(from.Date()), To: kluis.Date(to.Date()), Purpose: client.PurposeBILLING})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Series) == 0 || r.Series[0].Resolution != client.P1M || r.Series[0].DeliveredCount != r.Series[0].ExpectedCount {
		t.Errorf("readings: %+v", r.Series)
	}
	if a, err := k.Access(ctx, mine.EAN, nil); err != nil || len(a.Granted) == 0 {
		t.Errorf("access: %v", err)
	}
	if s, err := k.Status(ctx); err != nil || s.Status != client.StatusStatusUP {
		t.Errorf("status: %v", err)
	}
	// Errors have their kind, all faults, and nothing of the request.
	_, err = k.Readings(ctx, mine.EAN, &client.GetReadingsParams{From: kluis.Date(to.Date()), To: kluis.Date(from.Date()), Purpose: "NONE"})
	if p := kluis.AsProblem(err); !errors.Is(err, kluis.InvalidParameters) || p.Errors == nil || len(*p.Errors) != 2 || p.Temporary() {
		t.Errorf("%v", err)
	}
	if _, err = k.Readings(ctx, "871687200000099991", &client.GetReadingsParams{From: kluis.Date(from.Date()), To: kluis.Date(to.Date()), Purpose: client.PurposeBILLING}); kluis.AsProblem(err) == nil {
		t.Errorf("%v", err)
	}
	var refused *kluis.TokenError
	stranger := w.kluisClient(t, 0, func(c *kluis.Config) { c.ClientID = w.ready.Suppliers[1].ClientID })
	if _, err := stranger.Status(ctx); !errors.As(err, &refused) {
		t.Errorf("%v", err)
	}

	// A consent: asked for, asked for again, withdrawn.
	year := time.Now().UTC().Year()
	asked := client.NewConsent{
		Ean: mine.EAN, Purpose: client.PurposeENERGYMANAGEMENT, Classes: []client.FieldClass{client.Intervals}, Granularity: client.PT1H,
		From: kluis.Date(year, time.January, 1), ValidUntil: time.Date(year+1, time.January, 1, 0, 0, 0, 0, time.UTC), Evidence: "client-test",
	}
	key := &client.CreateConsentParams{IdempotencyKey: uuid.NewString()}
	var made [2]*client.CreateConsentResponse
	for i := range made {
		if made[i], err = k.API().CreateConsentWithResponse(ctx, key, asked); err != nil {
			t.Fatal(err)
		}
		if err := kluis.Check(made[i].HTTPResponse, made[i].Body); err != nil {
			t.Fatal(err)
		}
	}
	if made[0].JSON201.Id != made[1].JSON201.Id || made[0].JSON201.State != client.ConsentStateREQUESTED {
		t.Errorf("%+v", made[1].JSON201)
	}
	withdraw := func(params *client.RevokeConsentParams) error {
		params.IdempotencyKey = uuid.NewString()
		res, err := k.API().RevokeConsentWithResponse(ctx, made[0].JSON201.Id, params)
		if err != nil {
			t.Fatal(err)
		}
		return kluis.Check(res.HTTPResponse, res.Body)
	}
	if err := withdraw(&client.RevokeConsentParams{}); kluis.AsProblem(err).Status != http.StatusPreconditionRequired {
		t.Errorf("%v", err)
	}
	tag := made[0].HTTPResponse.Header.Get("ETag")
	if err := withdraw(&client.RevokeConsentParams{IfMatch: &tag}); err != nil {
		t.Error(err)
	}

	// Changes can be followed.
	first, err := k.Changes(ctx, time.Now().Add(-time.Hour), "")
	if err != nil {
		t.Fatal(err)
	}
	for batch, err := range k.Poll(ctx, first.Cursor, time.Millisecond) {
		if err != nil {
			t.Fatal(err)
		}
		if !batch.More {
			break
		}
	}
}

// A stream gives what single requests give; broken, and taken up again in
// another process, it gives each metering point once, and the manifest holds.
func TestClientStream(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	ctx := t.Context()
	k := w.kluisClient(t, 0, nil)
	var whole []kluis.Point
	r, err := k.Query(ctx, billingOfLastMonth(), "", func(p kluis.Point) error { whole = append(whole, p); return nil })
	if err != nil {
		t.Fatal(err)
	}
	if r.Requests != 1 || int(r.Manifest.Points) != len(whole) || len(whole) < 5 {
		t.Fatalf("%d metering points in %d requests, manifest %+v", len(whole), r.Requests, r.Manifest)
	}
	eans := func(points []kluis.Point) (out []string) {
		for _, p := range points {
			out = append(out, p.Ean)
		}
		return out
	}
	for _, p := range whole[:3] {
		one, err := k.Readings(ctx, p.Ean, &client.GetReadingsParams{From: billingOfLastMonth().From, To: billingOfLastMonth().To, Purpose: client.PurposeBILLING})
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(one.Series, *p.Series) || !reflect.DeepEqual(one.Withheld, *p.Withheld) {
			t.Errorf("%s: the stream has %+v, the request %+v", p.Ean, p, one)
		}
	}

	broken := newBreaker(t, w.ready.GatewayURL, 6000, 3)
	var again []kluis.Point
	r, err = w.kluisClient(t, 0, func(c *kluis.Config) { c.Gateway = broken.url() }).
		Query(ctx, billingOfLastMonth(), "", func(p kluis.Point) error { again = append(again, p); return nil })
	if err != nil {
		t.Fatal(err)
	}
	if broken.broken.Load() == 0 || r.Requests < 2 {
		t.Errorf("nothing broke: %d requests", r.Requests)
	}
	if !slices.Equal(eans(again), eans(whole)) {
		t.Errorf("broken %d times: %q, want %q", broken.broken.Load(), eans(again), eans(whole))
	}

	enough := errors.New("enough")
	var first []kluis.Point
	if _, err = k.Query(ctx, billingOfLastMonth(), "", func(p kluis.Point) error {
		if len(first) == 2 {
			return enough
		}
		first = append(first, p)
		return nil
	}); !errors.Is(err, enough) {
		t.Fatal(err)
	}
	other := w.kluisClient(t, 0, nil)
	if _, err = other.Query(ctx, billingOfLastMonth(), first[1].Checkpoint, func(p kluis.Point) error { first = append(first, p); return nil }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(eans(first), eans(whole)) {
		t.Errorf("in two processes: %q, want %q", eans(first), eans(whole))
	}
	// A checkpoint is no right: another supplier cannot go on with it, nor
	// another query.
	if _, err = w.kluisClient(t, 1, nil).Query(ctx, billingOfLastMonth(), first[1].Checkpoint, func(kluis.Point) error { return nil }); !errors.Is(err, kluis.InvalidParameters) {
		t.Errorf("another supplier: %v", err)
	}
	otherQuery := billingOfLastMonth()
	otherQuery.Purpose = client.PurposeENERGYMANAGEMENT
	if _, err = k.Query(ctx, otherQuery, first[1].Checkpoint, func(kluis.Point) error { return nil }); !errors.Is(err, kluis.InvalidParameters) {
		t.Errorf("another query: %v", err)
	}
}
