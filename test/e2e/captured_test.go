package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"kluis/authz"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
	"kluis/ingest"
	"kluis/internal/config"
	"kluis/internal/devpki"
	"kluis/internal/postgres"
	"kluis/meter"
)

// These tests are an attacker who has a service's private key, its database
// role and its network place. What he gets is what docs/THREAT-MODEL.md says.

// poolAs reaches the cryptoservers as a service does, with its certificate.
func (l *lab) poolAs(t testing.TB, identity string, addresses ...string) *client.Client {
	t.Helper()
	pki := filepath.Join(l.state, "pki")
	conf, err := config.ClientTLS(config.TLS{
		CertificateFile: filepath.Join(pki, identity+".crt"), KeyFile: filepath.Join(pki, identity+".key"), CAFile: l.ready.CAFile})
	if err != nil {
		t.Fatal(err)
	}
	if len(addresses) == 0 {
		for _, c := range l.ready.Cryptoservers {
			addresses = append(addresses, c.Address)
		}
	}
	pool, err := client.New(client.Config{Addresses: addresses, TLS: conf, Timeout: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pool.Close(); err != nil {
			t.Error(err)
		}
	})
	return pool
}

// thief is a captured gateway with a live token of a supplier.
type thief struct {
	l    *lab
	pool *client.Client
	v    vendor
}

// loot is everything a thief can present for a home: the evidence of it, and
// all its data keys and blocks.
func (th thief) loot(t testing.TB, h *home) (client.OpenRequest, []string) {
	t.Helper()
	l := th.l
	r := client.OpenRequest{
		AccessToken: th.v.accessToken(t), Profile: l.profile.Digest(),
		SupplierRecord: one[[]byte](t, l.world, `SELECT record FROM supplier WHERE gln = $1 ORDER BY version DESC LIMIT 1`, th.v.gln.Int64()),
	}
	u := client.Unit{
		InteractionID: [16]byte{7},
		LegalFile:     one[[]byte](t, l.world, `SELECT file FROM legal_file WHERE ean = $1 ORDER BY version DESC LIMIT 1`, h.ean.Int64()),
		Request:       authz.Request{EAN: h.ean, Purpose: meter.EnergyManagement, Days: meter.DayRange{From: h.first, To: h.last}},
	}
	for _, name := range homeFields {
		f, _ := l.profile.Field(name)
		u.Request.Fields = append(u.Request.Fields, f.Code)
	}
	var keys []string
	u.Keys, u.Blocks, keys = l.rowsOf(t, h)
	r.Units = []client.Unit{u}
	return r, keys
}

// rowsOf is what a captured gateway reads without any Grant: the newest of
// every block, and every data key. The texts name the blocks.
func (l *lab) rowsOf(t testing.TB, h *home) (keys []envelope.KeyRecord, blocks []envelope.SealedBlock, names []string) {
	t.Helper()
	db := l.as(t, "kluis_gateway")
	rows, err := db.Query(`SELECT uuid_send(key_id), class, month, occupancy, kek_epoch, wrapped, mac FROM data_key WHERE ean = $1`, h.ean.Int64())
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	at := map[[16]byte]int{}
	for rows.Next() {
		k := envelope.KeyRecord{EAN: h.ean}
		var id, mac []byte
		if err := rows.Scan(&id, &k.Class, &k.Month, &k.Occupancy, &k.Epoch, &k.Wrapped, &mac); err != nil {
			t.Fatal(err)
		}
		k.ID, k.MAC = [16]byte(id), [32]byte(mac)
		at[k.ID] = len(keys)
		keys = append(keys, k)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	rows, err = db.Query(`SELECT DISTINCT ON (field, day) field, day - DATE '1970-01-01', resolution, version, uuid_send(key_id), ciphertext
		FROM sealed_block WHERE ean = $1 ORDER BY field, day, version DESC`, h.ean.Int64())
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var b envelope.SealedBlock
		var id []byte
		if err := rows.Scan(&b.Field, &b.Day, &b.Resolution, &b.Version, &id, &b.Ciphertext); err != nil {
			t.Fatal(err)
		}
		b.Key = at[[16]byte(id)]
		blocks = append(blocks, b)
		f, _ := l.profile.FieldByCode(b.Field)
		names = append(names, dayKey(f.Name, b.Day))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return keys, blocks, names
}

// plain is what a cryptoserver gave, as seen.values has it.
func (l *lab) plain(o client.Opened) map[string]string {
	out := map[string]string{}
	for _, s := range o.Series {
		f, _ := l.profile.FieldByCode(s.Field)
		for _, d := range s.Days {
			texts := make([]string, len(d.Values))
			for i, v := range d.Values {
				if texts[i] = "null"; v != meter.Null {
					texts[i] = string(meter.AppendValue(nil, v, f.Precision))
				}
			}
			out[dayKey(f.Name, d.Day)] = strings.Join(texts, " ")
		}
	}
	return out
}

func only(values map[string]string, keep func(key string) bool) map[string]string {
	out := maps.Clone(values)
	maps.DeleteFunc(out, func(k, _ string) bool { return !keep(k) })
	return out
}

func TestCapturedGatewayOpens(t *testing.T) {
	t.Parallel()
	l := sharedWorld(t).lab(t)
	v, victim := l.vendor(t), l.vendor(t)
	th := thief{l, l.poolAs(t, "gateway"), v}
	h, foreign := l.home(t, v), l.home(t, victim)
	intervals := func(k string) bool { return strings.HasPrefix(k, "import_intervals") }
	registers := func(k string) bool { return !intervals(k) }

	open := func(t *testing.T, r client.OpenRequest) client.Opened {
		t.Helper()
		out, err := th.pool.Open(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return out[0]
	}
	outside := func(o client.Opened) (n int) {
		for _, f := range o.Faults {
			if f.Reason == client.OutsideGrant {
				n++
			}
		}
		return n
	}
	wantPlain := func(t *testing.T, o client.Opened, want map[string]string) {
		t.Helper()
		if got := l.plain(o); !maps.Equal(got, want) {
			t.Errorf("opened %v\nwant %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
		}
	}

	wantNothing := func(t *testing.T, o client.Opened) {
		t.Helper()
		for k, v := range l.plain(o) {
			if strings.Trim(v, "nul ") != "" {
				t.Errorf("%s: opened", k)
			}
		}
	}

	t.Run("what the supplier may read", func(t *testing.T) {
		r, names := th.loot(t, h)
		o := open(t, r)
		wantPlain(t, o, h.corrected)
		if len(o.Faults) != 0 || len(names) != len(h.corrected) {
			t.Errorf("faults %v", o.Faults)
		}
	})
	t.Run("more days than asked for", func(t *testing.T) {
		r, _ := th.loot(t, h)
		r.Units[0].Request.Days = meter.DayRange{From: h.turn, To: h.turn + 1}
		o := open(t, r)
		wantPlain(t, o, only(h.corrected, func(k string) bool {
			return strings.HasSuffix(k, h.turn.String()) || registers(k) && strings.HasSuffix(k, (h.turn+1).String())
		}))
		if n := outside(o); n != len(h.corrected)-5 {
			t.Errorf("%d blocks refused of %d", n, len(h.corrected))
		}
	})
	t.Run("fields not asked for", func(t *testing.T) {
		r, _ := th.loot(t, h)
		r.Units[0].Request.Fields = r.Units[0].Request.Fields[:1]
		o := open(t, r)
		wantPlain(t, o, only(h.corrected, func(k string) bool { return strings.HasPrefix(k, "import_low") }))
		if n := outside(o); n != len(h.corrected)-7 {
			t.Errorf("%d blocks refused of %d", n, len(h.corrected))
		}
	})
	t.Run("daily reads for billing", func(t *testing.T) {
		r, _ := th.loot(t, h)
		r.Units[0].Request.Purpose = meter.Billing
		o := open(t, r)
		if len(o.Series) != 0 || outside(o) != len(h.corrected) {
			t.Errorf("%d series, %d refused", len(o.Series), outside(o))
		}
	})
	t.Run("finer than granted", func(t *testing.T) {
		coarse := l.emptyHome(t, v)
		coarse.step(t, authz.RevokeConsent{ID: coarse.consent}, authz.GrantConsent{ID: [16]byte{1, 2, 3}, Supplier: v.gln, Purpose: meter.EnergyManagement,
			Classes: []meter.Class{meter.Intervals}, Granularity: meter.P1D, Days: meter.DayRange{From: coarse.first, To: coarse.last},
			ValidUntil: time.Now().Add(time.Hour).UTC().Truncate(time.Second), Evidence: "daily"})
		if _, err := l.in.Days(t.Context(), []ingest.Point{coarse.blocks(t, 2)}, ingest.Options{}); err != nil {
			t.Fatal(err)
		}
		for _, asked := range []meter.Resolution{meter.PT15M, meter.PT1H, 0} {
			r, _ := th.loot(t, coarse)
			r.Units[0].Request.Resolution = asked
			o := open(t, r)
			for _, s := range o.Series {
				if s.Resolution < meter.P1D {
					t.Errorf("asked for %s, given %s", asked, s.Resolution)
				}
				for _, d := range s.Days {
					if len(d.Values) != 1 {
						t.Errorf("asked for %s, given %d values of a day", asked, len(d.Values))
					}
				}
			}
		}
	})
	t.Run("a foreign metering point", func(t *testing.T) {
		r, _ := th.loot(t, foreign)
		if o := open(t, r); !errors.Is(o.Err, authz.ErrNoRelation) || len(o.Series) != 0 || o.Receipt != nil {
			t.Errorf("%v, %d series", o.Err, len(o.Series))
		}
	})
	t.Run("foreign blocks under the own legal file", func(t *testing.T) {
		r, _ := th.loot(t, h)
		u := &r.Units[0]
		u.Keys, u.Blocks, _ = l.rowsOf(t, foreign)
		o := open(t, r)
		wantNothing(t, o)
		if len(o.Faults) != len(u.Blocks) {
			t.Errorf("%d faults for %d blocks", len(o.Faults), len(u.Blocks))
		}
		// Also when the records claim to be of the own metering point.
		for i := range u.Keys {
			u.Keys[i].EAN = h.ean
		}
		o = open(t, r)
		wantNothing(t, o)
		for _, f := range o.Faults {
			if f.Reason != client.Damaged {
				t.Errorf("block %d: %v", f.Block, f.Reason)
			}
		}
	})
	t.Run("foreign blocks beside the own", func(t *testing.T) {
		r, _ := th.loot(t, h)
		other, _ := th.loot(t, foreign)
		r.Units = append(r.Units, other.Units...)
		out, err := th.pool.Open(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		wantPlain(t, out[0], h.corrected)
		if !errors.Is(out[1].Err, authz.ErrNoRelation) {
			t.Errorf("%v", out[1].Err)
		}
	})
	t.Run("a past supplier", func(t *testing.T) {
		switched := l.home(t, v)
		switched.step(t, authz.SetSupply{Supplier: victim.gln, Days: meter.DayRange{From: switched.turn, To: meter.MaxDay}})
		r, _ := th.loot(t, switched)
		o := open(t, r)
		// Its own days, and the closing read.
		wantPlain(t, o, only(switched.corrected, func(k string) bool {
			day := k[len(k)-10:]
			return day < switched.turn.String() || registers(k) && day == switched.turn.String()
		}))
		if n := outside(o); n != 3+2*3 {
			t.Errorf("%d blocks refused", n)
		}
	})
	t.Run("before a revocation was noticed", func(t *testing.T) {
		revoked := l.home(t, v)
		r, _ := th.loot(t, revoked)
		revoked.step(t, authz.RevokeConsent{ID: revoked.consent})
		now, _ := th.loot(t, revoked)
		o := open(t, now)
		wantPlain(t, o, only(revoked.corrected, registers))
		// The old file is still good for a minute, as the threat model says;
		// what it never allowed, it does not allow now.
		r.Units[0].Request.Days.To++
		if o := open(t, r); o.Err != nil && !errors.Is(o.Err, client.ErrEvidence) {
			t.Error(o.Err)
		}
	})
	t.Run("evidence of nobody", func(t *testing.T) {
		r, _ := th.loot(t, h)
		for name, file := range map[string][]byte{
			"none":              nil,
			"a supplier record": r.SupplierRecord,
			"altered":           append(slices.Clone(r.Units[0].LegalFile[:len(r.Units[0].LegalFile)-1]), r.Units[0].LegalFile[len(r.Units[0].LegalFile)-1]^1),
		} {
			bad := r
			bad.Units = slices.Clone(r.Units)
			bad.Units[0].LegalFile = file
			if o := open(t, bad); !errors.Is(o.Err, client.ErrEvidence) || len(o.Series) != 0 {
				t.Errorf("%s: %v", name, o.Err)
			}
		}
	})
	t.Run("duplicates", func(t *testing.T) {
		r, _ := th.loot(t, h)
		u := &r.Units[0]
		n := len(u.Blocks)
		u.Blocks = append(u.Blocks, u.Blocks...)
		o := open(t, r)
		wantPlain(t, o, h.corrected)
		if len(o.Faults) != n || slices.ContainsFunc(o.Faults, func(f client.Fault) bool { return f.Reason != client.Duplicate || f.Block < n }) {
			t.Errorf("%d faults: %v", len(o.Faults), o.Faults)
		}
		u.Request.Fields = append(u.Request.Fields, u.Request.Fields[0])
		if _, err := th.pool.Open(t.Context(), r); !errors.Is(err, client.ErrRefused) {
			t.Errorf("a field twice: %v", err)
		}
	})
	t.Run("very many blocks", func(t *testing.T) {
		r, _ := th.loot(t, h)
		u := &r.Units[0]
		block := u.Blocks[0]
		u.Blocks = make([]envelope.SealedBlock, 100_000)
		for i := range u.Blocks {
			u.Blocks[i] = block
		}
		if _, err := th.pool.Open(t.Context(), r); !errors.Is(err, client.ErrRefused) {
			t.Error(err)
		}
		u.Blocks = nil
		u.Keys = slices.Repeat(u.Keys, 5000)
		if _, err := th.pool.Open(t.Context(), r); !errors.Is(err, client.ErrRefused) {
			t.Error(err)
		}
		u.Keys = nil
		r.Units = slices.Repeat(r.Units, 1001)
		if _, err := th.pool.Open(t.Context(), r); !errors.Is(err, client.ErrRefused) {
			t.Error(err)
		}
	})

	// The caller.
	refusals := func(name string, change func(*client.OpenRequest), want error) {
		t.Run(name, func(t *testing.T) {
			r, _ := th.loot(t, h)
			change(&r)
			out, err := th.pool.Open(t.Context(), r)
			if !errors.Is(err, want) || out != nil {
				t.Errorf("%v, want %v", err, want)
			}
		})
	}
	refusals("no token", func(r *client.OpenRequest) { r.AccessToken = "" }, client.ErrTokenRefused)
	refusals("token without its signature", func(r *client.OpenRequest) { r.AccessToken = r.AccessToken[:strings.LastIndex(r.AccessToken, ".")+1] }, client.ErrTokenRefused)
	refusals("token of another supplier", func(r *client.OpenRequest) { r.AccessToken = victim.accessToken(t) }, client.ErrSupplierRefused)
	refusals("record of another supplier", func(r *client.OpenRequest) {
		r.SupplierRecord = one[[]byte](t, l.world, `SELECT record FROM supplier WHERE gln = $1`, victim.gln.Int64())
	}, client.ErrSupplierRefused)
	refusals("no record", func(r *client.OpenRequest) { r.SupplierRecord = nil }, client.ErrSupplierRefused)
	refusals("another profile", func(r *client.OpenRequest) { r.Profile[31] ^= 1 }, client.ErrProfileMismatch)
	genuine := one[[]byte](t, l.world, `SELECT record FROM supplier WHERE gln = $1`, victim.gln.Int64())
	record := sure(sure(sealKeysOf(l)).Supplier(genuine))
	forged := sure(authz.NewSupplier(record, authz.SupplierFacts{GLN: victim.gln, Name: record.Name(), Scopes: record.Scopes(),
		Certificates: append(record.Certificates(), certificateOf(v.cert))}, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, time.Now()))
	for name, sealed := range forge(t, forged.Payload(), genuine) {
		refusals("forged record "+name, func(r *client.OpenRequest) { r.SupplierRecord = sealed }, client.ErrSupplierRefused)
	}
	t.Run("expired token", func(t *testing.T) {
		t.Parallel()
		r, _ := th.loot(t, h)
		short, until, err := l.poolAs(t, "issuer").SignToken(t.Context(), r.SupplierRecord, sha256.Sum256(v.cert.Certificate[0]), []string{"readings:read"}, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		l.secrets.token(short)
		r.AccessToken = short
		time.Sleep(time.Until(until) + 100*time.Millisecond)
		within(t, 15*time.Second, "an expired token is refused", func() bool {
			_, err := th.pool.Open(t.Context(), r)
			return errors.Is(err, client.ErrTokenRefused)
		})
	})
}

// What a captured gateway opens without a record is in the cryptoserver's journal
// all the same, which does not pass the gateway.
func TestReceiptsOfACapturedGateway(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.lab(t)
	v := l.vendor(t)
	h := l.home(t, v)
	// A cryptoserver that nobody else uses.
	side := w.oneMoreCryptoserver(t, tempUnder(t, w.dir), func(c *config.Cryptoserver) { c.ID = "cryptoserver-receipts" })["address"]
	th := thief{l, l.poolAs(t, "gateway", side), v}
	r, _ := th.loot(t, h)
	var receipts [][]byte
	for i := range 5 {
		r.Units[0].InteractionID[0] = byte(i)
		r.Units[0].Request.Days.To = r.Units[0].Request.Days.From + 1 + meter.Day(i)
		out, err := th.pool.Open(t.Context(), r)
		if err != nil || out[0].Err != nil {
			t.Fatal(err, out)
		}
		receipt, err := envelope.ParseReceipt(out[0].Receipt)
		if err != nil {
			t.Fatal(err)
		}
		if receipt.EAN != h.ean || receipt.Supplier != v.gln || receipt.Opened == 0 || int(receipt.Opened+receipt.Refused) != len(h.corrected) {
			t.Errorf("receipt %+v", receipt)
		}
		receipts = append(receipts, out[0].Receipt)
	}
	st := th.pool.Status(t.Context())[0]
	if st.Receipts != 5 {
		t.Errorf("the server has issued %d receipts", st.Receipts)
	}
	journal, err := l.poolAs(t, "auditor", side).ReadJournal(t.Context(), side, st.BootID, 0)
	if err != nil {
		t.Fatal(err)
	}
	chain := envelope.Chain{ServerID: st.ServerID, BootID: st.BootID}
	for _, b := range journal.Entries {
		e, err := chain.Next(b)
		if err != nil {
			t.Fatal(err)
		}
		if e.Receipt != nil && (len(receipts) == 0 || !bytes.Equal(b, receipts[0])) {
			t.Errorf("entry %d is another receipt than was given", chain.Sequence)
		} else if e.Receipt != nil {
			receipts = receipts[1:]
		}
	}
	if len(receipts) != 0 {
		t.Errorf("%d receipts are not in the journal", len(receipts))
	}
}

// Every method, by every identity there is.
func TestWhoMayCallACryptoserver(t *testing.T) {
	t.Parallel()
	l := sharedWorld(t).lab(t)
	may := map[string][]string{
		"Open": {"gateway"}, "Mint": {"ingest"}, "Seal": {"ingest"}, "SealStep": {"registrar"}, "TakeStep": {"gateway"}, "SignManifest": {"gateway"}, "SealSupplier": {"registrar"},
		"SealIdentity": {"ingest"}, "OpenIdentity": {"gateway"}, "FindIndex": {"gateway"}, "TakeSupplierStep": {"gateway"},
		"SignToken": {"issuer"}, "SignStaffToken": {"issuer"}, "Status": {"gateway", "ingest", "issuer", "registrar"},
	}
	leaf := func(ca *devpki.CA, l devpki.Leaf) *tls.Certificate { return ptrTo(sure(ca.Issue(l))) }
	file := func(name string) *tls.Certificate {
		pki := filepath.Join(l.state, "pki")
		return ptrTo(sure(tls.LoadX509KeyPair(filepath.Join(pki, name+".crt"), filepath.Join(pki, name+".key"))))
	}
	other := sure(devpki.NewCA("Kluis demo operator CA")) // by name only
	identities := map[string]*tls.Certificate{
		"portal":         leaf(l.operatorCA, devpki.Leaf{CommonName: "portal"}),
		"unknown":        leaf(l.operatorCA, devpki.Leaf{CommonName: "backup"}),
		"empty":          leaf(l.operatorCA, devpki.Leaf{}),
		"other case":     leaf(l.operatorCA, devpki.Leaf{CommonName: "Gateway"}),
		"longer":         leaf(l.operatorCA, devpki.Leaf{CommonName: "gateway\x00"}),
		"by host":        leaf(l.operatorCA, devpki.Leaf{CommonName: "x", Hosts: []string{"gateway"}}),
		"cryptoserver-1": file("cryptoserver-1"),
	}
	for _, name := range []string{"gateway", "ingest", "issuer", "registrar"} {
		identities[name] = file(name)
	}
	strangers := map[string]*tls.Certificate{
		"no certificate":               nil,
		"supplier":                     file("supplier-1"),
		"gateway of the suppliers' CA": leaf(l.supplierCA, devpki.Leaf{CommonName: "gateway"}),
		"gateway of another CA":        leaf(other, devpki.Leaf{CommonName: "gateway"}),
		"expired gateway":              leaf(l.operatorCA, devpki.Leaf{CommonName: "gateway", NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Minute)}),
		"gateway of tomorrow":          leaf(l.operatorCA, devpki.Leaf{CommonName: "gateway", NotBefore: time.Now().Add(time.Hour)}),
	}
	roots := x509.NewCertPool()
	roots.AddCert(l.operatorCA.Certificate())

	for _, server := range l.ready.Cryptoservers {
		dial := func(t *testing.T, cert *tls.Certificate) *grpc.ClientConn {
			conf := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}
			if cert != nil {
				conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
			}
			conn, err := grpc.NewClient(server.Address, grpc.WithTransportCredentials(credentials.NewTLS(conf)))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
			return conn
		}
		for name, cert := range identities {
			t.Run(server.Address+"/"+name, func(t *testing.T) {
				t.Parallel()
				conn := dial(t, cert)
				anything := false
				for _, m := range cryptopb.Cryptoserver_ServiceDesc.Methods {
					allowed := slices.Contains(may[m.MethodName], name)
					anything = anything || allowed
					err := conn.Invoke(t.Context(), "/"+cryptopb.Cryptoserver_ServiceDesc.ServiceName+"/"+m.MethodName, &cryptopb.StatusRequest{}, &cryptopb.StatusResponse{})
					reason := reasonOf(err)
					switch denied := status.Code(err) == codes.PermissionDenied && reason == cryptopb.ReasonIdentityNotAllowed; {
					case allowed && m.MethodName == "Status":
						if err != nil {
							t.Errorf("%s: %v", m.MethodName, err)
						}
					case allowed && reason != cryptopb.ReasonMalformed && reason != cryptopb.ReasonSupplierInvalid && reason != cryptopb.ReasonTokenInvalid:
						t.Errorf("%s: %v", m.MethodName, err) // an empty request
					case !allowed && !denied:
						t.Errorf("%s is open: %v", m.MethodName, err)
					}
				}
				_, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: "open"})
				if (err == nil) != anything {
					t.Errorf("health: %v", err)
				}
				for _, method := range []string{"/kluis.cryptoserver.v1.Cryptoserver/Decrypt", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.channelz.v1.Channelz/GetServers"} {
					if err := conn.Invoke(t.Context(), method, &cryptopb.StatusRequest{}, &cryptopb.StatusResponse{}); status.Code(err) != codes.PermissionDenied && status.Code(err) != codes.Unimplemented {
						t.Errorf("%s: %v", method, err)
					}
				}
			})
		}
		for name, cert := range strangers {
			t.Run(server.Address+"/"+name, func(t *testing.T) {
				t.Parallel()
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				_, err := cryptopb.NewCryptoserverClient(dial(t, cert)).Status(ctx, &cryptopb.StatusRequest{})
				// The alert, or what is left of the connection after it.
				refused := regexp.MustCompile(`tls: |broken pipe|connection reset`).MatchString(fmt.Sprint(err))
				if status.Code(err) != codes.Unavailable || !refused {
					t.Errorf("not refused by TLS: %v", err)
				}
			})
		}
		t.Run(server.Address+"/garbage", func(t *testing.T) {
			t.Parallel()
			l.garbage(t, dial(t, identities["gateway"]), server.Address)
		})
	}
}

func ptrTo[T any](v T) *T { return &v }

func reasonOf(err error) cryptopb.Reason {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.Domain == cryptopb.ReasonDomain {
			return cryptopb.Reason(info.Reason)
		}
	}
	return ""
}

// rawCodec sends and takes bytes as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error)   { return *v.(*[]byte), nil }
func (rawCodec) Unmarshal(b []byte, v any) error { *v.(*[]byte) = slices.Clone(b); return nil }
func (rawCodec) Name() string                    { return "proto" }
func repeated(b string, n int) []byte            { return []byte(strings.Repeat(b, n)) }
func field(number byte, content []byte) []byte {
	return append(append([]byte{number<<3 | 2}, varint(len(content))...), content...)
}
func varint(n int) (b []byte) {
	for ; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

// garbage sends what is no message, or a senseless one; the server answers
// each and goes on.
func (l *lab) garbage(t *testing.T, conn *grpc.ClientConn, address string) {
	const method = "/kluis.cryptoserver.v1.Cryptoserver/Open"
	for name, body := range map[string][]byte{
		"noise":               repeated("\xff\x00\x81\x7f", 999),
		"text":                []byte("GET / HTTP/1.1\r\n\r\n"),
		"length past the end": {0x22, 0xff, 0xff, 0xff, 0xff, 0x0f, 1},
		"nested deep":         repeated("\x22\x02", 5000),
		"token not UTF-8":     field(1, []byte{0xff, 0xfe}),
		"empty units":         repeated("\x22\x00", 1000),
		"too many units":      repeated("\x22\x00", 1_000_000),
		"empty blocks":        field(4, repeated("\x52\x00", 20_000)),
		"million blocks":      field(4, repeated("\x52\x00", 1_000_000)),
		"million keys":        field(4, repeated("\x4a\x00", 1_000_000)),
		"million fields":      field(4, field(6, repeated("\x01", 1_000_000))),
		"large record":        field(2, repeated("x", 15<<20)),
		"larger than allowed": field(2, repeated("x", 17<<20)),
	} {
		var answer []byte
		err := conn.Invoke(t.Context(), method, &body, &answer, grpc.ForceCodec(rawCodec{}))
		switch status.Code(err) {
		case codes.InvalidArgument, codes.Unauthenticated, codes.PermissionDenied, codes.Internal, codes.ResourceExhausted:
		default:
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(fmt.Sprint(err), "panic") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Not even HTTP/2.
	raw, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = raw.Write(repeated("\x16\x03\x01garbage", 100))
	_ = raw.Close()
	var st cryptopb.StatusResponse
	if err := conn.Invoke(t.Context(), "/kluis.cryptoserver.v1.Cryptoserver/Status", &cryptopb.StatusRequest{}, &st); err != nil || !st.Healthy {
		t.Errorf("after the garbage: %v, healthy %v", err, st.Healthy)
	}
}

func TestCapturedIssuer(t *testing.T) {
	t.Parallel()
	l := sharedWorld(t).lab(t)
	v, other := l.vendor(t), l.vendor(t)
	pool := l.poolAs(t, "issuer")
	record := func(v vendor) []byte {
		return one[[]byte](t, l.world, `SELECT record FROM supplier WHERE gln = $1 ORDER BY version DESC LIMIT 1`, v.gln.Int64())
	}
	mine := sha256.Sum256(v.cert.Certificate[0])
	scopes := []string{"readings:read"}

	// Another certificate, once registered and then revoked.
	old := l.pair(t, devpki.Leaf{CommonName: "old"})
	revoked := certificateOf(old)
	revoked.RevokedAt = time.Now()
	gone := l.pair(t, devpki.Leaf{CommonName: "gone", NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(-time.Minute)})
	_, err := l.reg.ChangeSupplier(t.Context(), v.gln, func(s *authz.Supplier) (authz.SupplierFacts, error) {
		return authz.SupplierFacts{GLN: v.gln, Name: s.Name(), Scopes: s.Scopes(),
			Certificates: append(s.Certificates(), revoked, certificateOf(gone))}, nil
	})
	if err != nil {
		t.Fatal(err)
	}

	raw, until, err := pool.SignToken(t.Context(), record(v), mine, scopes, 300*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	l.secrets.token(raw)
	if life := time.Until(until); life > 300*time.Second || life < 250*time.Second {
		t.Errorf("the longest token lives %s", life)
	}
	// A token that is genuine serves only the certificate it is bound to.
	v.with(t, raw, "/v1/status")
	if a := other.with(t, raw, "/v1/status"); a.status != 401 {
		t.Errorf("with another's certificate: %d", a.status)
	}

	genuine := record(v)
	forged := sure(authz.NewSupplier(sure(sure(sealKeysOf(l)).Supplier(genuine)), authz.SupplierFacts{GLN: v.gln, Name: "x", Scopes: append(scopes, "everything"),
		Certificates: []authz.Certificate{certificateOf(other.cert)}}, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, time.Now()))
	for name, c := range map[string]struct {
		record     []byte
		thumbprint [32]byte
		scopes     []string
		life       time.Duration
		want       cryptopb.Reason
	}{
		"unregistered certificate":     {genuine, sha256.Sum256(other.cert.Certificate[0]), scopes, time.Minute, cryptopb.ReasonSupplierInvalid},
		"no certificate":               {genuine, [32]byte{}, scopes, time.Minute, cryptopb.ReasonSupplierInvalid},
		"revoked certificate":          {genuine, revoked.Thumbprint, scopes, time.Minute, cryptopb.ReasonSupplierInvalid},
		"expired certificate":          {genuine, sha256.Sum256(gone.Certificate[0]), scopes, time.Minute, cryptopb.ReasonSupplierInvalid},
		"of another supplier":          {record(other), mine, scopes, time.Minute, cryptopb.ReasonSupplierInvalid},
		"no record":                    {nil, mine, scopes, time.Minute, cryptopb.ReasonSupplierInvalid},
		"forged record":                {forge(t, forged.Payload(), genuine)["under a pinned key's id"], sha256.Sum256(other.cert.Certificate[0]), scopes, time.Minute, cryptopb.ReasonSupplierInvalid},
		"scope not in the record":      {genuine, mine, []string{"readings:write"}, time.Minute, cryptopb.ReasonScope},
		"one scope more":               {genuine, mine, []string{"readings:read", "everything"}, time.Minute, cryptopb.ReasonScope},
		"no scope":                     {genuine, mine, nil, time.Minute, cryptopb.ReasonMalformed},
		"a scope twice":                {genuine, mine, []string{"readings:read", "readings:read"}, time.Minute, cryptopb.ReasonMalformed},
		"a second longer than allowed": {genuine, mine, scopes, 301 * time.Second, cryptopb.ReasonMalformed},
		"for a day":                    {genuine, mine, scopes, 24 * time.Hour, cryptopb.ReasonMalformed},
		"no life":                      {genuine, mine, scopes, 0, cryptopb.ReasonMalformed},
	} {
		raw, _, err := pool.SignToken(t.Context(), c.record, c.thumbprint, c.scopes, c.life)
		var e *client.Error
		if raw != "" || !errors.As(err, &e) || e.Reason != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

func TestCapturedIngest(t *testing.T) {
	t.Parallel()
	l := sharedWorld(t).lab(t)
	v := l.vendor(t)
	h, n := l.home(t, v), l.home(t, v)
	pool := l.poolAs(t, "ingest")

	t.Run("open", func(t *testing.T) {
		r, _ := thief{l, pool, v}.loot(t, h)
		if _, err := pool.Open(t.Context(), r); !errors.Is(err, client.ErrRefused) || reasonIn(err) != cryptopb.ReasonIdentityNotAllowed {
			t.Error(err)
		}
	})
	keys, _, _ := l.rowsOf(t, h)
	foreign, _, _ := l.rowsOf(t, n)
	i := slices.IndexFunc(keys, func(k envelope.KeyRecord) bool { return k.Class == meter.Intervals && k.Month == h.turn.Month() })
	j := slices.IndexFunc(foreign, func(k envelope.KeyRecord) bool { return k.Class == meter.Intervals && k.Month == h.turn.Month() })
	other := slices.IndexFunc(keys, func(k envelope.KeyRecord) bool { return k.Class == meter.Registers && k.Month == h.turn.Month() })
	point := h.blocks(t, 2)
	k := slices.IndexFunc(point.Blocks, func(b ingest.FieldBlock) bool {
		return b.Field == importIntervals && b.Block.Day == h.turn
	})
	seal := func(key envelope.KeyRecord, change func(*envelope.PlainBlock)) error {
		b := envelope.PlainBlock{Field: importIntervals, Version: 5, Block: point.Blocks[k].Block}
		if change != nil {
			change(&b)
		}
		out, err := pool.Seal(t.Context(), h.ean, []envelope.KeyRecord{key}, []envelope.PlainBlock{b})
		if err != nil && out != nil {
			t.Error("something was sealed")
		}
		return err
	}
	if err := seal(keys[i], nil); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*envelope.KeyRecord){
		"MAC":         func(k *envelope.KeyRecord) { k.MAC[0] ^= 1 },
		"no MAC":      func(k *envelope.KeyRecord) { k.MAC = [32]byte{} },
		"id":          func(k *envelope.KeyRecord) { k.ID[15] ^= 1 },
		"class":       func(k *envelope.KeyRecord) { k.Class = meter.Registers },
		"month":       func(k *envelope.KeyRecord) { k.Month++ },
		"occupancy":   func(k *envelope.KeyRecord) { k.Occupancy++ },
		"epoch":       func(k *envelope.KeyRecord) { k.Epoch = 2 },
		"wrapped":     func(k *envelope.KeyRecord) { k.Wrapped = slices.Clone(k.Wrapped); k.Wrapped[0] ^= 1 },
		"neighbour's": func(k *envelope.KeyRecord) { *k = foreign[j] },
		"neighbour's under this name": func(k *envelope.KeyRecord) {
			*k = foreign[j]
			k.EAN = h.ean
		},
		"neighbour's wrapped": func(k *envelope.KeyRecord) { k.Wrapped = foreign[j].Wrapped },
		"other class's":       func(k *envelope.KeyRecord) { *k = keys[other] },
	} {
		altered := keys[i]
		change(&altered)
		if err := seal(altered, nil); !errors.Is(err, client.ErrKeyRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*envelope.PlainBlock){
		"another month": func(b *envelope.PlainBlock) { b.Block.Day = h.turn - 3 },
		"another class": func(b *envelope.PlainBlock) { b.Field = importLow },
		"unknown field": func(b *envelope.PlainBlock) { b.Field = 999 },
		"version 0":     func(b *envelope.PlainBlock) { b.Version = 0 },
		"no such key":   func(b *envelope.PlainBlock) { b.Key = 1 },
		"short day":     func(b *envelope.PlainBlock) { b.Block.Values = b.Block.Values[:50]; b.Block.Quality = nil },
		"impossible": func(b *envelope.PlainBlock) {
			b.Block.Values = slices.Clone(b.Block.Values)
			b.Block.Values[0] = 1 << 60
		},
	} {
		if err := seal(keys[i], change); !errors.Is(err, client.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Nor can it write over what is there.
	store, err := postgres.NewIngest(t.Context(), postgres.Config{DSN: l.operator.IngestURL})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	out, err := pool.Seal(t.Context(), h.ean, []envelope.KeyRecord{keys[i]}, []envelope.PlainBlock{{Field: importIntervals, Version: 1, Block: point.Blocks[k].Block}})
	if err != nil {
		t.Fatal(err)
	}
	err = store.Commit(t.Context(), postgres.Batch{Blocks: []postgres.Row{{EAN: h.ean, Field: importIntervals, Day: h.turn, Version: 1, Resolution: meter.PT15M,
		KeyID: keys[i].ID, ValueCount: 1, ContentMAC: out[0].ContentMAC, Ciphertext: out[0].Ciphertext}}})
	if !errors.Is(err, postgres.ErrConflict) {
		t.Errorf("writing over a version: %v", err)
	}
	h.intact(t)
}

func reasonIn(err error) cryptopb.Reason {
	var e *client.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}
