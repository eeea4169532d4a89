// Package verdicts asks go-spiffe for its verdict on every case of tests/corpus. It is built as a test because
// testing/synctest, by which each token meets the time of its case, is for tests only.
//
//	go test -c -o go-spiffe && CORPUS=…/tests/corpus VERDICTS=FILE ./go-spiffe
//
// FILE gets one JSON object a line: {"corpus", "file", "name", "ours", "theirs", "id", "why"}.
package verdicts

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

type verdict struct {
	Corpus string `json:"corpus"`
	File   string `json:"file"`
	Name   string `json:"name"`
	Ours   string `json:"ours"`
	Theirs string `json:"theirs"`
	ID     string `json:"id,omitempty"`
	Why    string `json:"why,omitempty"`
}

type x509Case struct {
	Name    string
	Chain   []string
	Bundles map[string][]string
	Now     time.Time
	Verdict string
	ID      string `json:"spiffe_id"`
}

type jwtCase struct {
	Name     string
	Token    string
	Bundles  map[string]string
	Audience string
	Now      time.Time
	Verdict  string
	ID       string `json:"spiffe_id"`
}

func TestVerdicts(t *testing.T) {
	corpus, path := os.Getenv("CORPUS"), os.Getenv("VERDICTS")
	if corpus == "" || path == "" {
		t.Fatal("CORPUS and VERDICTS must be set")
	}
	var said bytes.Buffer
	lines := json.NewEncoder(&said)
	judgeX509(t, filepath.Join(corpus, "spiffe-x509"), lines)
	judgeJWT(t, filepath.Join(corpus, "jwt-svid"), lines)
	if err := os.WriteFile(path, said.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// files gives the files of a corpus that hold cases.
func files(t *testing.T, directory string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(directory, "*.json"))
	if err != nil || len(all) == 0 {
		t.Fatalf("%s: no corpus: %v", directory, err)
	}
	var cases []string
	for _, path := range all {
		switch filepath.Base(path) {
		case "roots.json", "bundles.json", "signatures.json", "differences.json":
		default:
			cases = append(cases, path)
		}
	}
	return cases
}

func (v verdict) write(t *testing.T, lines *json.Encoder, id spiffeid.ID, wanted string, err error) {
	t.Helper()
	switch {
	case err != nil:
		v.Theirs, v.Why = "refuse", err.Error()
	case v.Ours == "ok" && id.String() != wanted:
		v.Theirs, v.ID, v.Why = "refuse", id.String(), "another SPIFFE ID"
	default:
		v.Theirs, v.ID = "ok", id.String()
	}
	if err := lines.Encode(v); err != nil {
		t.Fatal(err)
	}
}

func judgeX509(t *testing.T, directory string, lines *json.Encoder) {
	var encoded map[string]string
	read(t, filepath.Join(directory, "roots.json"), &encoded)
	for _, path := range files(t, directory) {
		var cases []x509Case
		read(t, path, &cases)
		for _, c := range cases {
			id, err := verifyX509(c, encoded)
			verdict{Corpus: "spiffe-x509", File: filepath.Base(path), Name: c.Name, Ours: c.Verdict}.write(t, lines, id, c.ID, err)
		}
	}
}

func verifyX509(c x509Case, roots map[string]string) (spiffeid.ID, error) {
	var chain [][]byte
	for _, text := range c.Chain {
		der, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return spiffeid.ID{}, err
		}
		chain = append(chain, der)
	}
	bundles := x509bundle.NewSet()
	var unread error
	for name, ids := range c.Bundles {
		domain, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return spiffeid.ID{}, err
		}
		bundle := x509bundle.New(domain)
		for _, id := range ids {
			der, err := base64.StdEncoding.DecodeString(roots[id])
			if err != nil {
				return spiffeid.ID{}, err
			}
			// A root that crypto/x509 does not read is one that a Go program does not have.
			root, err := x509.ParseCertificate(der)
			if err != nil {
				unread = errors.Join(unread, errors.New("root "+id+": "+err.Error()))
				continue
			}
			bundle.AddX509Authority(root)
		}
		bundles.Add(bundle)
	}
	id, _, err := x509svid.ParseAndVerify(chain, bundles, x509svid.WithTime(c.Now))
	if err != nil {
		err = errors.Join(err, unread)
	}
	return id, err
}

func judgeJWT(t *testing.T, directory string, lines *json.Encoder) {
	var sets map[string]json.RawMessage
	read(t, filepath.Join(directory, "bundles.json"), &sets)
	for _, path := range files(t, directory) {
		var cases []jwtCase
		read(t, path, &cases)
		for _, c := range cases {
			var id spiffeid.ID
			var err error
			synctest.Test(t, func(*testing.T) {
				// In here it is the beginning of the year 2000, and no time passes but by sleeping.
				time.Sleep(time.Until(c.Now))
				id, err = verifyJWT(c, sets)
			})
			verdict{Corpus: "jwt-svid", File: filepath.Base(path), Name: c.Name, Ours: c.Verdict}.write(t, lines, id, c.ID, err)
		}
	}
}

func verifyJWT(c jwtCase, sets map[string]json.RawMessage) (spiffeid.ID, error) {
	bundles := jwtbundle.NewSet()
	var unread error
	for name, set := range c.Bundles {
		domain, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return spiffeid.ID{}, err
		}
		bundle, err := jwtbundle.Parse(domain, sets[set])
		if err != nil {
			unread = errors.Join(unread, err)
			continue
		}
		bundles.Add(bundle)
	}
	svid, err := jwtsvid.ParseAndValidate(c.Token, bundles, []string{c.Audience})
	if err != nil {
		return spiffeid.ID{}, errors.Join(err, unread)
	}
	return svid.ID, nil
}
