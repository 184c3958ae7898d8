"""What tests share: contracts that every backend passes, file systems that fail, clusters that can be broken on purpose."""
