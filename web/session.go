package web

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/alexedwards/scs/v2"
)

// Store keeps sessions. What it keeps says nothing to who reads it: ids are
// hashes, data is sealed.
type Store interface {
	// Session returns nil for one that is not there or has ended.
	Session(ctx context.Context, id []byte, now time.Time) ([]byte, error)
	// AddSession must fail when there is one with the id.
	AddSession(ctx context.Context, id, subject, data []byte, expires time.Time) error
	// TouchSession must not bring back one that was ended.
	TouchSession(ctx context.Context, id, data []byte, expires time.Time) error
	EndSession(ctx context.Context, id []byte) error
	EndSessions(ctx context.Context, subject []byte) error
	Purge(ctx context.Context, now time.Time) error

	AddCase(ctx context.Context, session, id, data []byte) error
	Case(ctx context.Context, session, id []byte) ([]byte, error)
	Cases(ctx context.Context, session []byte, each func(id, data []byte)) error
}

// Employee is who signed in.
type Employee struct {
	Subject   string    `json:"sub"` // iss#sub, as in records
	Name      string    `json:"name"`
	Role      Role      `json:"role"`
	IDToken   string    `json:"id_token"`
	ExpiresAt time.Time `json:"expires"` // of the ID token: then they sign in again

	signedInAt time.Time // at the provider, in person
}

// session is a visit's session: of somebody who signed in, always.
type session struct {
	Employee
	id       []byte    // hash of the cookie's token
	Ends     time.Time // at the latest
	IdleEnds time.Time // without a further click
}

// of says whether it is a session of the employee.
func (s *session) of(e Employee) bool { return s != nil && s.Subject == e.Subject }

// cookieName can be set by this host alone, over TLS alone (__Host-).
const cookieName = "__Host-kluis"

// employeeKey is where the employee stands in a session's values: all there is.
const employeeKey = "employee"

func (p *Portal) newSessions() *scs.SessionManager {
	m := scs.New()
	m.Store, m.Codec = vault{p}, scs.GobCodec{}
	m.HashTokenInStore = true
	m.Lifetime = p.config.Absolute
	m.Cookie = scs.SessionCookie{Name: cookieName, Path: "/", HttpOnly: true, Secure: true, SameSite: http.SameSiteLaxMode}
	return m
}

// findSession is the session of a request; nil for who has not signed in, and when
// it has ended. A click lets it go on.
func (p *Portal) findSession(r *http.Request, click bool) (*session, error) {
	c, err := r.Cookie(cookieName)
	if err != nil {
		return nil, nil
	}
	token, ok := p.tokenOf(c.Value)
	if !ok {
		return nil, nil
	}
	ctx, err := p.sessions.Load(r.Context(), token)
	if err != nil {
		return nil, err
	}
	raw := p.sessions.GetBytes(ctx, employeeKey)
	if raw == nil {
		return nil, nil
	}
	s := &session{id: hashed(token), Ends: p.sessions.Deadline(ctx)}
	if err := json.Unmarshal(raw, &s.Employee); err != nil {
		return nil, fmt.Errorf("a session's employee: %w", err)
	}
	s.IdleEnds = p.idleEnds(s.Ends)
	if click {
		if _, _, err = p.sessions.Commit(ctx); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// idleEnds is when a session that goes on now ends without a further click.
func (p *Portal) idleEnds(deadline time.Time) time.Time {
	if idle := p.now().Add(p.config.Idle); idle.Before(deadline) {
		return idle
	}
	return deadline
}

// begin begins a session, under an id that nobody knew before, and sets its
// cookie. It ends old, the one that the browser had, if any. Where that is the same
// employee's it is renewed: their cases come along, and so does its end. It returns
// errSignInAgain when a session to be renewed was ended meanwhile.
func (p *Portal) begin(w http.ResponseWriter, r *http.Request, e Employee, old *session) error {
	deadline, renews := p.now().Add(p.config.Absolute), old.of(e)
	if renews {
		deadline = old.Ends
	}
	raw, err := json.Marshal(e)
	if err != nil {
		return err
	}
	ctx, err := p.sessions.Load(context.WithValue(r.Context(), beginning{}, p.subject(e.Subject)), "")
	if err != nil {
		return err
	}
	p.sessions.SetDeadline(ctx, deadline.UTC())
	p.sessions.Put(ctx, employeeKey, raw)
	token, expires, err := p.sessions.Commit(ctx)
	if err != nil {
		return err
	}
	if renews {
		// Signing out everywhere may have come between, and known nothing of the
		// new one.
		data, err := p.store.Session(ctx, old.id, p.now())
		if err == nil && data == nil {
			err = errSignInAgain
		}
		if err == nil {
			err = p.moveCases(ctx, old.id, hashed(token))
		}
		if err != nil {
			return errors.Join(err, p.store.EndSession(ctx, hashed(token)))
		}
	}
	if old != nil {
		if err := p.end(ctx, old); err != nil {
			return err
		}
	}
	p.sessions.WriteSessionCookie(ctx, w, p.cookieOf(token, deadline), expires)
	return nil
}

// end ends a session, with its tokens.
func (p *Portal) end(ctx context.Context, s *session) error {
	p.errands.forget(s.id)
	return p.store.EndSession(ctx, s.id)
}

// dropCookie has the browser forget the session.
func dropCookie(w http.ResponseWriter) {
	http.SetCookie(w, &http.Cookie{Name: cookieName, Path: "/", MaxAge: -1, HttpOnly: true, Secure: true, SameSite: http.SameSiteLaxMode})
}

// beginning marks the context of a login, with the subject's digest: only a login
// makes a session.
type beginning struct{}

// vault is the store as scs sees it: it seals, with when the session ends unless
// there is a click, and knows a new session from one that goes on.
type vault struct{ p *Portal }

func (v vault) FindCtx(ctx context.Context, key string) ([]byte, bool, error) {
	id, err := idOf(key)
	if err != nil {
		return nil, false, err
	}
	sealed, err := v.p.store.Session(ctx, id, v.p.now())
	if err != nil || sealed == nil {
		return nil, false, err
	}
	data, err := v.p.open("session", id, sealed)
	if err != nil || len(data) < 8 {
		return nil, false, nil // sealed with a key of before: it has ended
	}
	// The column says the same to who has no key; whoever writes it moves no end.
	if expires := time.UnixMicro(int64(binary.BigEndian.Uint64(data))); !v.p.now().Before(expires) {
		return nil, false, nil
	}
	return data[8:], true, nil
}

// CommitCtx reckons the end by the portal's clock; scs knows the system's alone.
func (v vault) CommitCtx(ctx context.Context, key string, data []byte, _ time.Time) error {
	id, err := idOf(key)
	if err != nil {
		return err
	}
	deadline, _, err := v.p.sessions.Codec.Decode(data)
	if err != nil {
		return err
	}
	expires := v.p.idleEnds(deadline)
	sealed := v.p.sealed("session", id, append(binary.BigEndian.AppendUint64(nil, uint64(expires.UnixMicro())), data...))
	if subject, ok := ctx.Value(beginning{}).([]byte); ok {
		return v.p.store.AddSession(ctx, id, subject, sealed, expires)
	}
	return v.p.store.TouchSession(ctx, id, sealed, expires)
}

func (v vault) DeleteCtx(ctx context.Context, key string) error {
	id, err := idOf(key)
	if err != nil {
		return err
	}
	return v.p.store.EndSession(ctx, id)
}

var errNoContext = errors.New("web: the sessions' store needs a context")

// Find, Commit and Delete are those that scs does not call.
func (v vault) Find(string) ([]byte, bool, error)      { return nil, false, errNoContext }
func (v vault) Commit(string, []byte, time.Time) error { return errNoContext }
func (v vault) Delete(string) error                    { return errNoContext }

// idOf undoes the text form that scs gives a hash.
func idOf(key string) ([]byte, error) {
	id, err := base64.RawURLEncoding.DecodeString(key)
	if err != nil || len(id) != sha256.Size {
		return nil, errors.New("web: not the hash of a session's id")
	}
	return id, nil
}

// cookieOf is a session's cookie: the token, the second by which the session has
// ended in any case, and a MAC of both. What somebody made up, or kept for longer,
// is told by it: nobody can have the database asked without having signed in.
func (p *Portal) cookieOf(token string, ends time.Time) string {
	text := token + "." + strconv.FormatInt(ends.Unix()+1, 10)
	return text + "." + base64.RawURLEncoding.EncodeToString(p.cookieMAC(text))
}

// tokenOf is the token in a cookie that cookieOf made, and that can be of a session
// yet.
func (p *Portal) tokenOf(cookie string) (token string, ok bool) {
	at := strings.LastIndexByte(cookie, '.')
	if at < 0 {
		return "", false
	}
	mac, err := base64.RawURLEncoding.DecodeString(cookie[at+1:])
	if err != nil || !hmac.Equal(mac, p.cookieMAC(cookie[:at])) {
		return "", false
	}
	token, ends, _ := strings.Cut(cookie[:at], ".")
	end, err := strconv.ParseInt(ends, 10, 64)
	return token, err == nil && p.now().Before(time.Unix(end, 0))
}

func (p *Portal) cookieMAC(text string) []byte {
	m := hmac.New(sha256.New, derived(p.config.SessionKey, "cookie"))
	m.Write([]byte(text))
	return m.Sum(nil)
}

// hashed is the id of a session by its cookie, or by the token in it.
func hashed(cookie string) []byte {
	token, _, _ := strings.Cut(cookie, ".")
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}

// newSeal is AES-256-GCM under a key of the session key's.
func newSeal(key [32]byte) (cipher.AEAD, error) {
	b, err := aes.NewCipher(derived(key, "seal"))
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(b)
}

func derived(key [32]byte, what string) []byte {
	m := hmac.New(sha256.New, key[:])
	m.Write([]byte("kluis portal " + what))
	return m.Sum(nil)
}

// subject is the keyed digest of an employee.
func (p *Portal) subject(sub string) []byte {
	m := hmac.New(sha256.New, derived(p.config.SessionKey, "subject"))
	m.Write([]byte(sub))
	return m.Sum(nil)
}

// employeeDigest names an employee in logs without saying who.
func (p *Portal) employeeDigest(sub string) string { return hex.EncodeToString(p.subject(sub)[:6]) }

// sealed seals what is kept under an id, for one kind: neither can be put in
// another's place.
func (p *Portal) sealed(kind string, id, data []byte) []byte {
	return p.seal.Seal(nil, nil, data, append([]byte(kind+"\x00"), id...))
}

func (p *Portal) open(kind string, id, sealed []byte) ([]byte, error) {
	return p.seal.Open(nil, nil, sealed, append([]byte(kind+"\x00"), id...))
}

// secret is 128 random bits.
func secret() [16]byte {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: see crypto/rand
	return b
}
