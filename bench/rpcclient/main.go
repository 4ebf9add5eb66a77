// Calls RPCs as kubelet does, with Go's gRPC, and tells how long each took.
//
// Reads one JSON object a line from standard input and writes one JSON array of seconds for each.
// With the path of a socket it is a server instead that answers every call with nothing, to tell
// what any plugin written in Go would take at least.
// Messages are bytes that somebody else has encoded, so that nothing has to be generated here.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// order says what to call: so many calls one after the other, by each of so many callers at the
// same time. Each caller has a connection of its own.
type order struct {
	Address string
	Method  string
	Request []byte
	Callers int
	Calls   int
	WarmUp  int
}

// raw passes messages on as they are.
type raw struct{}

func (raw) Marshal(message any) ([]byte, error) { return *message.(*[]byte), nil }

func (raw) Unmarshal(data []byte, message any) error {
	*message.(*[]byte) = append([]byte(nil), data...)
	return nil
}

func (raw) Name() string { return "proto" }

type clients struct{ known map[string][]*grpc.ClientConn }

// dial gives connections to an address, the same ones each time.
func (c *clients) dial(address string, number int) ([]*grpc.ClientConn, error) {
	for len(c.known[address]) < number {
		connection, err := grpc.NewClient(
			address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		)
		if err != nil {
			return nil, err
		}
		c.known[address] = append(c.known[address], connection)
	}
	return c.known[address][:number], nil
}

// call makes calls one after the other, from the moment at which all callers are warm.
func call(connection *grpc.ClientConn, what order, warm *sync.WaitGroup) ([]float64, error) {
	var answer []byte
	once := func() error {
		return connection.Invoke(
			context.Background(), what.Method, &what.Request, &answer, grpc.ForceCodec(raw{}),
		)
	}
	for range what.WarmUp {
		if err := once(); err != nil {
			warm.Done()
			return nil, err
		}
	}
	warm.Done()
	warm.Wait()
	took := make([]float64, 0, what.Calls)
	for range what.Calls {
		start := time.Now()
		if err := once(); err != nil {
			return nil, err
		}
		took = append(took, time.Since(start).Seconds())
	}
	return took, nil
}

func run(known *clients, what order) ([]float64, error) {
	connections, err := known.dial(what.Address, what.Callers)
	if err != nil {
		return nil, err
	}
	var warm, done sync.WaitGroup
	warm.Add(what.Callers)
	took := make([][]float64, what.Callers)
	errs := make([]error, what.Callers)
	for i, connection := range connections {
		done.Add(1)
		go func() {
			defer done.Done()
			took[i], errs[i] = call(connection, what, &warm)
		}()
	}
	done.Wait()
	every := []float64{}
	for i := range connections {
		if errs[i] != nil {
			return nil, errs[i]
		}
		every = append(every, took[i]...)
	}
	return every, nil
}

// serve answers every call with an empty message, until it is killed.
func serve(socket string) error {
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	answer := func(_ any, stream grpc.ServerStream) error {
		var request, nothing []byte
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		return stream.SendMsg(&nothing)
	}
	fmt.Println("serving")
	server := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(answer))
	return server.Serve(listener)
}

func main() {
	if len(os.Args) > 1 {
		fmt.Fprintln(os.Stderr, "rpcclient:", serve(os.Args[1]))
		os.Exit(1)
	}
	known := &clients{map[string][]*grpc.ClientConn{}}
	orders, answers := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for orders.More() {
		var what order
		if err := orders.Decode(&what); err != nil {
			fmt.Fprintln(os.Stderr, "rpcclient:", err)
			os.Exit(2)
		}
		took, err := run(known, what)
		if err == nil {
			err = answers.Encode(took)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "rpcclient:", err)
			os.Exit(1)
		}
	}
}
